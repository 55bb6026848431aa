from mae_hf import MAEForImageClassification, MAEForPreTraining
from mae_hf.conversion import convert
from tests.helpers import run_program


def test_script_for_the_official_repository_runs_and_its_checkpoints_convert(tmp_path):
    run_program("official_scripts", tmp_path, "mae_vit_tiny_patch16_dec128d8b", "vit_tiny_patch16")
    for name, model_class in (("pretrained", MAEForPreTraining), ("finetuned", MAEForImageClassification)):
        convert(tmp_path / f"{name}.pth", tmp_path / name, num_attention_heads=3, decoder_num_attention_heads=4)
        assert model_class.from_pretrained(tmp_path / name).config.hidden_size == 192
