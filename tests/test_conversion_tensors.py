import torch

from mae_hf.conversion.tensors import cast, differences, not_finite, own_storage, widest_dtype


def test_difference_is_one_of_bits():
    nan = torch.tensor([float("nan"), 0.0])
    assert differences({"a": nan}, {"a": nan.clone()}) == []
    assert differences({"a": torch.zeros(1)}, {"a": -torch.zeros(1)}) == ["a has other values"]
    assert differences({"a": torch.tensor(1.0)}, {"a": torch.tensor(1.0)}) == []
    assert differences({"a": torch.zeros(1)}, {"a": torch.zeros(2)}) == ["a has the shape (2,), not (1,)"]


def test_tensors_that_share_or_waste_storage_get_their_own():
    flat = torch.arange(6.0)
    given = {"a": flat, "b": flat, "c": flat[:2], "d": flat.reshape(2, 3).T, "e": torch.zeros(1).expand(4)}
    owned = own_storage(given)
    assert all(torch.equal(owned[key], value) for key, value in given.items())
    assert owned["a"] is flat and len({value.data_ptr() for value in owned.values()}) == 5
    assert all(value.is_contiguous() and value.untyped_storage().nbytes() == value.nbytes for value in owned.values())


def test_cast_leaves_integers_alone():
    given = {"a": torch.zeros(2), "n": torch.tensor(3)}
    assert cast(given, None) == given
    assert {key: value.dtype for key, value in cast(given, torch.float16).items()} == {
        "a": torch.float16,
        "n": torch.int64,
    }


def test_widest_dtype_holds_all_floating_point_tensors():
    whole, half, brain = (torch.zeros(1, dtype=x) for x in (torch.float32, torch.float16, torch.bfloat16))
    assert widest_dtype({"a": half, "n": torch.tensor(3)}) == torch.float16
    assert widest_dtype({"a": half, "b": whole}) == widest_dtype({"a": half, "b": brain}) == torch.float32


def test_keys_of_tensors_that_are_not_finite():
    odd = {"nan": torch.tensor([0.0, float("nan")]), "inf": torch.tensor([float("-inf")]), "fine": torch.zeros(3)}
    assert not_finite(odd | {"n": torch.tensor(3)}) == ["nan", "inf"]
