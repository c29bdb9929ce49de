"""Pictures say all that they are to say."""

from __future__ import annotations

import io

from matplotlib.figure import Figure

from bench.show.plots import frame


def test_long_titles_and_captions_stay_inside_the_picture() -> None:
    figure = Figure(figsize=(9, 4), layout="constrained")
    figure.subplots()
    frame(figure, "WWW many words of a title " * 8, "WWW many words of a caption " * 20)
    figure.savefig(io.BytesIO(), format="png")
    assert len(figure.texts) == 2, "title and caption"
    for text in figure.texts:
        box = text.get_window_extent()
        assert min(box.x0, box.y0) >= 0
        assert box.x1 <= figure.bbox.width
        assert box.y1 <= figure.bbox.height
