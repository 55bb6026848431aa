"""Print the file of the module that reads the ImageNet-1k labels, and how many there are."""

from mae_hf.conversion import inference

if __name__ == "__main__":
    print(inference.__file__, len(inference.labels_of(1000)))
