"""The page of the documentation: nothing that can be asked is left out."""


def test_the_documentation_names_every_path_and_setting(client):
    text = client.get("/docs").text
    said = [
        "num_inference_steps",
        "partial_images",
        "exit_layers",
        "from 1 to 10",
        "PartialImage",
        "partial_image_index",
    ]
    for name in [*client.get("/openapi.json").json()["paths"], *said, "Completed"]:
        assert name in text
    assert "<code>stream: true</code>" in text
    assert "https://" not in text
    assert "422" not in text
