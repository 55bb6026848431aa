import hashlib

import pytest

from mae_hf.conversion.catalogue import RELEASES, is_proven, md5_of, recognise

ZEROS = {"a.pth": "0" * 32}


def test_published_md5_decides_whatever_the_name(tmp_path):
    (tmp_path / "mae_visualize_vit_base.pth").write_bytes(b"x")
    md5 = {"a.pth": "8cad7c" + "0" * 26}
    found = recognise(tmp_path / "mae_visualize_vit_base.pth", md5, "pretraining", "base")
    assert found.name == "mae_pretrain_vit_base" and is_proven(found, md5)


def test_without_its_md5_name_and_shapes_and_bytes_decide_and_prove_nothing(tmp_path):
    resaved = tmp_path / "mae_pretrain_vit_base.pth"
    resaved.write_bytes(b"x")
    found = recognise(resaved, ZEROS, "encoder", "base")
    assert found.name == "mae_pretrain_vit_base" and not is_proven(found, ZEROS)
    assert recognise(resaved, ZEROS, "encoder", "large") is None
    path = tmp_path / "mae_visualize_vit_base.pth"
    path.write_bytes(b"x")
    assert recognise(path, ZEROS, "pretraining", "base").norm_pix_loss is False
    assert recognise(path, ZEROS, "encoder", "base") is None
    assert recognise(path, ZEROS, "pretraining", None) is None
    large = tmp_path / "mae_visualize_vit_large.pth"
    large.write_bytes(b"x")
    folder = tmp_path / "mae_visualize_vit_huge"
    folder.mkdir()
    assert recognise(folder, ZEROS, "pretraining", "huge") is None  # made of something, or trained
    assert recognise(large, ZEROS, "pretraining", "large") is None  # 1,318,315,181 bytes are published


def test_visualize_files_predict_raw_pixels_and_the_others_normalised_ones():
    assert {release.name for release in RELEASES if not release.norm_pix_loss} == {
        "mae_visualize_vit_base",
        "mae_visualize_vit_large",
        "mae_visualize_vit_huge",
        "mae_visualize_vit_large_ganloss",
    }


@pytest.mark.parametrize("content", [b"", b"mae" * 1000])
def test_md5_of_a_file(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    assert md5_of(tmp_path / "file") == hashlib.md5(content).hexdigest()
