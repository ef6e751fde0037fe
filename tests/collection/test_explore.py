import base64

import ipywidgets
import matplotlib.pyplot as plt

from nbhelpers.collection.explore import Explorer


def test_a_control_draws_anew_and_a_page_without_a_kernel_has_the_picture():
    def draw(slope, unused):
        plt.figure(figsize=(2, 1)).gca().plot([0, slope])
        return plt.gcf()

    others = plt.get_fignums()  # of tests before this one
    choice = ipywidgets.Dropdown(options=["a", "b"])
    seen = Explorer(draw, slope=ipywidgets.FloatSlider(1.0, min=0, max=2), unused=choice)
    first = seen.picture.value
    assert bytes(first).startswith(b"\x89PNG"), "drawn at once"
    assert base64.b64decode(seen._repr_mimebundle_()["image/png"]) == first
    seen.controls["slope"].value = 1.5  # as a hand would
    assert seen.picture.value != first
    assert seen.idle() == ["unused"], "a control that changes nothing is named"
    assert (seen.controls["slope"].value, plt.get_fignums()) == (1.5, others)
