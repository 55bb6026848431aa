"""Load repositories with code by every Auto class where mae_hf cannot be imported, and push them to others."""

import sys
import warnings

import torch
import transformers

CLASSES = ("MAEModel", "MAEForPreTraining", "MAEForImageClassification", "MAEBackbone")
AUTO_CLASSES = ("AutoModel", "AutoModelForPreTraining", "AutoModelForImageClassification", "AutoBackbone")
IMAGES = torch.linspace(-2, 2, 3 * 32 * 32).reshape(1, 3, 32, 32)


def main():
    for saved_by in CLASSES:
        found = []
        for name in AUTO_CLASSES:
            auto = getattr(transformers, name)
            model = auto.from_pretrained(f"someone/{saved_by}", trust_remote_code=True)
            assert type(model).__module__.startswith("transformers_modules.someone."), type(model)
            found.append(getattr(model, "mae", model)(IMAGES).last_hidden_state)
            if type(model).__name__ == saved_by:
                model.push_to_hub(f"someone/again-{saved_by}")
        assert all(torch.equal(features, found[0]) for features in found), saved_by


if __name__ == "__main__":
    sys.modules["mae_hf"] = None  # makes every import of it fail
    warnings.simplefilter("ignore")  # about parts that a repository lacks
    main()
