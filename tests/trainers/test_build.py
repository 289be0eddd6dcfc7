import numpy as np

from regvq_jax.trainers import build_data


def test_an_image_set_knows_the_files_of_its_images(image_folder, tiny_config):
    tiny_config.data.update(source=f"folder:{image_folder}", upscale=True)
    whole = build_data.image_set(tiny_config, "train", 2)
    some = build_data.image_set(tiny_config, "train", 2, limit=2)
    assert some.count == some.identity["limit"] == 2 < whole.count and "limit" not in whole.identity
    names = {whole.element_name(i): whole.image_at(i) for i in range(whole.count)}
    assert all(name.lower().endswith((".png", ".jpg", ".jpeg", ".webp")) for name in names)
    rows = [(i, x) for b in some.batches() for i, x in zip(b["index"], b["image"], strict=True)]
    for index, image in rows:
        np.testing.assert_array_equal(names[some.element_name(int(index))], image)
        np.testing.assert_array_equal(some.image_at(int(index)), image)
