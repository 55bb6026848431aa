import math
import random
from itertools import pairwise

import pytest
import torch
from PIL import Image, ImageChops, ImageOps, ImageStat

import augmentation
from augmentation import OPERATIONS, crop_box, cut_span, mix, rand_augment, random_erasing, random_resized_crop
from tests.helpers import CHELSEA

FILL = (124, 116, 104)
GRADED = sorted(OPERATIONS.keys() - {"AutoContrast", "Equalize", "Invert"})
SIGNED = ["Color", "Contrast", "Brightness", "Sharpness", "Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY"]


@pytest.fixture(scope="module")
def photo():
    with Image.open(CHELSEA) as image:
        return image.crop((120, 60, 216, 156))


def difference(one, other):
    """Return the mean absolute difference of two images."""
    return sum(ImageStat.Stat(ImageChops.difference(one, other)).mean) / 3


def constants(values, height=12, width=12):
    """Return a batch of images with one value each."""
    return torch.tensor(values, dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, 3, height, width).clone()


def erased_boxes(height, width, count, **options):
    """Yield the (top, bottom, left, right) of the erased rectangle for each seed that erases."""
    for seed in range(count):
        erased = random_erasing(torch.zeros(3, height, width), random.Random(seed), **options).ne(0)
        rows, columns = erased.any(0).any(1).nonzero().flatten(), erased.any(0).any(0).nonzero().flatten()
        if len(rows):
            box = rows[0].item(), rows[-1].item() + 1, columns[0].item(), columns[-1].item() + 1
            assert erased[:, box[0] : box[1], box[2] : box[3]].all()
            yield box


# random_resized_crop


def test_crop_is_within_the_image_and_the_bounds_of_area_and_aspect():
    rng = random.Random(0)
    for _ in range(1000):
        left, top, right, bottom = crop_box(400, 300, rng, (0.08, 1.0), (3 / 4, 4 / 3))
        assert 0 <= left < right <= 400 and 0 <= top < bottom <= 300
        assert 0.078 <= (right - left) * (bottom - top) / 120_000 <= 1
        assert 0.74 <= (right - left) / (bottom - top) <= 1.35


def test_crop_is_uniform_in_area_and_position_and_log_uniform_in_aspect():
    rng = random.Random(0)
    boxes = [crop_box(1000, 1000, rng, (0.1, 0.3), (1 / 4, 2)) for _ in range(4000)]
    areas = sorted((right - left) * (bottom - top) / 1e6 for left, top, right, bottom in boxes)
    aspects = sorted(math.log2((right - left) / (bottom - top)) for left, top, right, bottom in boxes)
    assert [areas[1000], areas[2000], areas[3000]] == pytest.approx([0.15, 0.2, 0.25], abs=0.006)
    assert [aspects[1000], aspects[2000], aspects[3000]] == pytest.approx([-1.25, -0.5, 0.25], abs=0.1)
    places = torch.tensor(
        [(left / (1000 - right + left), top / (1000 - bottom + top)) for left, top, right, bottom in boxes]
    )
    assert places.mean(0).tolist() == pytest.approx([0.5, 0.5], abs=0.015)
    assert places.amin() == 0 and places.amax() == 1


def test_crop_is_the_largest_centred_one_if_no_random_one_fits():
    rng, defaults = random.Random(0), ((0.08, 1.0), (3 / 4, 4 / 3))
    assert crop_box(1000, 20, rng, *defaults) == (486, 0, 513, 20)
    assert crop_box(20, 1000, rng, *defaults) == (0, 486, 20, 513)
    assert crop_box(110, 100, rng, (2.0, 3.0), defaults[1]) == (0, 0, 110, 100)


def test_crop_of_the_whole_image_is_a_bicubic_resize_to_height_and_width(photo):
    whole = random_resized_crop(photo, (32, 48), random.Random(0), (1.0, 1.0), (1.0, 1.0))
    assert whole.size == (48, 32)
    assert difference(whole, photo.resize((48, 32), Image.Resampling.BICUBIC)) == 0


def test_crop_reads_only_pixels_of_its_box(photo):
    options = (0.2, 0.5), (3 / 4, 4 / 3)
    box = crop_box(*photo.size, random.Random(3), *options)
    alone = Image.new("RGB", photo.size)
    alone.paste(photo.crop(box), box)
    crops = [random_resized_crop(image, (64, 64), random.Random(3), *options) for image in (photo, alone)]
    assert difference(*crops) == 0 and difference(alone, photo) > 0


# rand_augment


@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_changes_the_photograph_and_keeps_its_shape(name, photo):
    for strength in (0.9, -0.9, 1.0, -1.0):
        changed = OPERATIONS[name](photo, strength, FILL)
        assert changed.size == photo.size and changed.mode == "RGB"
        assert difference(changed, photo) > 0.5


@pytest.mark.parametrize("name", GRADED)
def test_severity_increases_with_the_magnitude(name, photo):
    for sign in (1, -1):
        changes = [difference(OPERATIONS[name](photo, sign * level, FILL), photo) for level in (0.25, 0.5, 0.75, 1.0)]
        assert all(less < more for less, more in pairwise(changes))


@pytest.mark.parametrize("name", sorted(set(GRADED) - {"Posterize"}))
def test_strength_zero_does_not_change_the_photograph(name, photo):
    assert difference(OPERATIONS[name](photo, 0.0, FILL), photo) == 0


@pytest.mark.parametrize("name", SIGNED[4:])
def test_sign_is_the_direction(name, photo):
    flip = ImageOps.flip if name in ("ShearY", "TranslateY") else ImageOps.mirror
    one, other = OPERATIONS[name](photo, 0.7, FILL), OPERATIONS[name](flip(photo), -0.7, FILL)
    assert difference(one, flip(other)) < 0.01 < difference(one, OPERATIONS[name](photo, -0.7, FILL))


@pytest.mark.parametrize("name", SIGNED[:4])
def test_sign_of_an_enhancement_is_more_or_less(name, photo):
    weakest, less, more = (OPERATIONS[name](photo, strength, FILL) for strength in (-1.0, -0.5, 0.5))
    assert difference(less, weakest) < difference(photo, weakest) < difference(more, weakest)


@pytest.mark.parametrize(
    "name, strength, before, after",
    [
        ("Posterize", 0.9, (255, 127, 128), (128, 0, 128)),  # 1 bit
        ("Posterize", 0.2, (255, 127, 128), (240, 112, 128)),  # 4 bits
        ("Posterize", 1.0, (255, 127, 128), (0, 0, 0)),
        ("Solarize", -0.9, (25, 26, 200), (25, 229, 55)),  # from 26
        ("SolarizeAdd", 0.9, (10, 127, 128), (109, 226, 128)),  # 99
        ("SolarizeAdd", -1.0, (0, 127, 200), (110, 237, 200)),
        ("Brightness", 1.0, (100, 50, 10), (190, 95, 19)),
        ("Brightness", -1.0, (100, 50, 10), (10, 5, 1)),
        ("Brightness", -2.0, (100, 50, 10), (10, 5, 1)),  # at least 0.1
        ("Invert", 0.3, (1, 2, 3), (254, 253, 252)),
    ],
)
def test_operation_on_a_colour(name, strength, before, after):
    assert OPERATIONS[name](Image.new("RGB", (4, 4), before), strength, FILL).getpixel((1, 1)) == after


def test_translation_is_relative_to_the_side_and_fills_with_the_mean():
    image = Image.new("RGB", (200, 100), "red")
    moved = OPERATIONS["TranslateX"](image, 1.0, FILL)
    assert [moved.getpixel((x, 50)) for x in (109, 110)] == [(255, 0, 0), FILL]
    moved = OPERATIONS["TranslateY"](image, -1.0, FILL)
    assert [moved.getpixel((50, y)) for y in (44, 45)] == [FILL, (255, 0, 0)]


def test_shear_and_rotation_reach_three_tenths_and_thirty_degrees():
    image = Image.new("RGB", (100, 100), "red")
    area = {name: sum(OPERATIONS[name](image, 1.0, (0, 0, 0)).split()[0].histogram()[128:]) for name in SIGNED[4:7]}
    assert area["ShearX"] == area["ShearY"] == pytest.approx(8500, abs=60)
    overlap = 2 / (1 + math.sin(math.pi / 6) + math.cos(math.pi / 6))  # of a square and the rotated one
    assert area["Rotate"] == pytest.approx(10_000 * overlap, abs=60)


@pytest.mark.parametrize("name", SIGNED[4:])
def test_geometry_is_bicubic_and_filled(name):
    image = Image.effect_noise((97, 97), 80).point(lambda value: 100 + 50 * (value > 128)).convert("RGB")
    moved = OPERATIONS[name](image, 0.77, FILL)
    assert moved.getextrema()[0][0] < 100 and moved.getextrema()[0][1] > 150  # a bicubic filter overshoots
    assert FILL in [moved.getpixel(corner) for corner in ((0, 0), (96, 0), (0, 96), (96, 96))]


def test_strengths_are_normal_around_the_magnitude_clipped_and_of_either_sign(monkeypatch, photo):
    strengths = []
    monkeypatch.setattr(augmentation, "OPERATIONS", {"": lambda image, strength, fill: strengths.append(strength)})
    rng = random.Random(0)
    for _ in range(4000):
        rand_augment(photo, rng, layers=1)
    sizes = torch.tensor(strengths).abs()
    assert len(strengths) / 4000 == pytest.approx(0.5, abs=0.03)
    assert (torch.tensor(strengths) > 0).float().mean() == pytest.approx(0.5, abs=0.04)
    assert sizes.median() == pytest.approx(0.9, abs=0.005) and sizes.std() == pytest.approx(0.049, abs=0.003)
    assert sizes.max() == 1 and (sizes == 1).float().mean() == pytest.approx(0.0228, abs=0.01)


def test_strengths_are_never_below_zero(monkeypatch, photo):
    strengths = []
    monkeypatch.setattr(augmentation, "OPERATIONS", {"": lambda image, strength, fill: strengths.append(strength)})
    rand_augment(photo, random.Random(0), layers=1000, magnitude=0, magnitude_std=1)
    assert strengths.count(0) / len(strengths) == pytest.approx(0.5, abs=0.07)


def test_layers_are_drawn_from_all_operations_with_replacement(monkeypatch, photo):
    drawn = []
    names = {name: lambda image, strength, fill, name=name: drawn.append((name, fill)) for name in OPERATIONS}
    monkeypatch.setattr(augmentation, "OPERATIONS", names)
    rand_augment(photo, random.Random(0), layers=6000, fill=(1, 2, 3))
    counts = [drawn.count((name, (1, 2, 3))) for name in names]
    assert sum(counts) == len(drawn) == pytest.approx(3000, abs=120)
    assert min(counts) > 150 and max(counts) < 250


def test_rand_augment_follows_its_seed(photo):
    once, again = ([rand_augment(photo, random.Random(seed)).tobytes() for seed in range(20)] for _ in range(2))
    assert once == again and len(set(once)) > 10
    assert photo.tobytes() in once  # a quarter of them


# random_erasing


def test_erased_rectangle_keeps_the_bounds_of_area_and_aspect():
    boxes = list(erased_boxes(90, 120, 300, probability=1))
    assert len(boxes) == 300
    areas = [(bottom - top) * (right - left) / (90 * 120) for top, bottom, left, right in boxes]
    aspects = [(right - left) / (bottom - top) for top, bottom, left, right in boxes]
    assert 0.018 <= min(areas) < 0.03 and 0.3 < max(areas) <= 0.34
    assert 0.27 <= min(aspects) < 0.4 and 2.5 < max(aspects) <= 3.6
    assert min(box[0] for box in boxes) == 0 and max(box[1] for box in boxes) == 90


def test_erasing_has_its_probability():
    assert len(list(erased_boxes(16, 16, 1000))) / 1000 == pytest.approx(0.25, abs=0.04)
    assert not list(erased_boxes(16, 16, 100, probability=0))


def test_erased_pixels_are_standard_normal_noise_of_every_channel():
    pixels = torch.full((3, 200, 200), 9.0)
    erased = random_erasing(pixels, random.Random(0), probability=1, area=(0.3, 0.3))
    noise = erased[:, (erased != 9).any(0)]
    assert noise.shape[1] == pytest.approx(12_000, rel=0.02) and pixels.eq(9).all()
    assert noise.mean(1).tolist() == pytest.approx([0] * 3, abs=0.04)
    assert noise.std(1).tolist() == pytest.approx([1] * 3, abs=0.03)
    assert torch.corrcoef(noise).triu(1).abs().max() < 0.04


def test_erasing_follows_its_seed():
    one, same, other = (random_erasing(torch.zeros(3, 16, 16), random.Random(seed), 1) for seed in (1, 1, 2))
    assert torch.equal(one, same) and one[one != 0][0] != other[other != 0][0]


def test_image_too_small_for_a_rectangle_is_not_changed():
    pixels = torch.zeros(3, 1, 1)
    assert random_erasing(pixels, random.Random(0), probability=1) is pixels


def test_erasing_leaves_something_of_every_row_and_column():
    for pixels in (torch.zeros(3, 8, 16), torch.zeros(3, 16, 8)):
        assert random_erasing(pixels, random.Random(0), 1, area=(0.5, 0.5), aspect=1) is pixels


# mix


@pytest.mark.parametrize("alphas", [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_targets_are_the_fractions_of_the_pixels(alphas):
    labels, fractions = torch.tensor([0, 1]), []
    for seed in range(200):
        mixed, targets = mix(constants([0, 1], 48, 68), labels, 3, random.Random(seed), *alphas, smoothing=0)
        fraction = mixed.mean((1, 2, 3))
        expected = torch.stack([1 - fraction, fraction, torch.zeros(2)], 1)
        torch.testing.assert_close(targets, expected, rtol=0, atol=1e-6)
        assert targets.dtype == torch.float32 and mixed[0, 0].equal(mixed[0, 2])
        fractions.append(targets[0, 0].item())
    assert min(fractions) < 0.25 and max(fractions) > 0.75


def test_mixup_blends_and_cutmix_replaces_a_rectangle():
    blended, _ = mix(constants([0, 1]), torch.tensor([0, 1]), 2, random.Random(1), cutmix=0)
    assert blended[0].unique().numel() == 1 and 0 < blended[0, 0, 0, 0] < 1
    cut, _ = mix(constants([0, 1]), torch.tensor([0, 1]), 2, random.Random(1), mixup=0)
    inside = cut[0, 0] == 1
    assert cut.unique().tolist() == [0, 1] and 0 < inside.sum() < 144
    assert inside.sum() == inside.any(0).sum() * inside.any(1).sum()
    assert torch.equal(cut[1], 1 - cut[0])


def test_cut_of_odd_size_is_rounded_down_as_in_timm():
    spans = [cut_span(100, 0.9, random.Random(seed)) for seed in range(50)]  # sqrt(0.1) of 100 is 31
    assert max(end - first for first, end in spans) == 30


def test_switch_is_the_probability_of_cutmix():
    def cutmix_fraction(**options):
        batches = (
            mix(constants([0, 1]), torch.tensor([0, 1]), 2, random.Random(seed), **options) for seed in range(500)
        )
        return sum(mixed.unique().tolist() == [0, 1] for mixed, _ in batches) / 500

    assert cutmix_fraction() == pytest.approx(0.5, abs=0.07)
    assert cutmix_fraction(switch=0.2) == pytest.approx(0.2, abs=0.06)
    assert cutmix_fraction(switch=0) == 0


def test_mixing_ratio_has_the_variance_of_its_beta_distribution():
    def ratios(alpha):
        batches = (
            mix(constants([0, 1], 1, 1), torch.tensor([0, 1]), 2, rng, alpha, 0, smoothing=0) for _ in range(2000)
        )
        return torch.stack([targets[0, 0] for _, targets in batches])

    rng = random.Random(0)
    for alpha in (0.8, 4.0):
        assert ratios(alpha).mean() == pytest.approx(0.5, abs=0.02)
        assert ratios(alpha).var() == pytest.approx(1 / (8 * alpha + 4), rel=0.1)


def test_box_of_cutmix_is_around_a_uniform_centre_and_clipped():
    inside = torch.zeros(20, 20)
    for seed in range(2000):
        mixed, _ = mix(constants([0, 1], 20, 20), torch.tensor([0, 1]), 2, random.Random(seed), mixup=0)
        inside += mixed[0, 0] / 2000
    assert inside[0, 0] < inside[0, 10] < inside[10, 10]  # the border is covered less often
    torch.testing.assert_close(inside, inside.flip(0, 1), rtol=0, atol=0.06)
    torch.testing.assert_close(inside, inside.T, rtol=0, atol=0.06)


@pytest.mark.parametrize("size", [1, 3, 4])
def test_partner_is_at_the_mirrored_position_of_a_batch_of_any_size(size):
    values = torch.arange(size) * 10.0
    for seed in range(10):
        mixed, targets = mix(constants(values.tolist()), torch.arange(size), size, random.Random(seed), smoothing=0)
        torch.testing.assert_close(mixed.mean((1, 2, 3)), targets @ values)
        assert targets[size // 2, size // 2] == 1 or size == 4


def test_smoothing_spreads_over_every_class():
    images, labels = constants([0, 1, 2]), torch.tensor([2, 0, 2])
    same, targets = mix(images, labels, 4, random.Random(0), mixup=0, cutmix=0, smoothing=0.1)
    assert torch.equal(same, images)
    expected = [[0.925 if label == index else 0.025 for index in range(4)] for label in (2, 0, 2)]
    torch.testing.assert_close(targets, torch.tensor(expected))


def test_mixed_and_smoothed_targets_sum_to_one():
    images, labels = constants(range(5)), torch.tensor([3, 1, 4, 1, 5])
    before = images.clone()
    for seed in range(50):
        _, targets = mix(images, labels, 7, random.Random(seed))
        torch.testing.assert_close(targets.sum(1), torch.ones(5))
        assert targets.min() >= 0.1 / 7 - 1e-6
    assert torch.equal(images, before)


def test_mix_follows_its_seed():
    batch = constants([0, 1]), torch.tensor([0, 1]), 2
    (one, first), (same, second), (other, _) = (mix(*batch, random.Random(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same) and torch.equal(first, second) and not torch.equal(one, other)
