"""The picture of all attention heads."""

from __future__ import annotations

from matplotlib.text import Text

from lightning_maxmargin.figures.heads import draw_heads


def values(layers: int, heads: int) -> dict[str, object]:
    found: dict[str, object] = {}
    for i in range(layers):
        for h in range(heads):
            name = f"encoder.layer.{i}.attention.self/head{h}/"
            found[f"{name}relative_margin/attention"] = None if h == 3 else 10.0**-h
            found[f"{name}attention/selected_mass"] = 0.9 if h < 2 else 0.2
            found[f"{name}attention/first"] = 1.0 if h in (0, 2) else 0.0
            found[f"{name}attention/last"] = 1.0 if h == 1 else 0.0
    return found


def test_margins_mass_and_sinks_are_in_it() -> None:
    figure = draw_heads(values(2, 4))
    assert figure is not None
    margins, mass = figure.axes[:2]
    assert [text.get_text() for text in margins.texts] == ["1", ".10", ".01"] * 2
    # A sink is a head that selects: head 2 is soft, its first token a tie.
    assert [text.get_text() for text in mass.texts] == [".90\nF", ".90\nL", ".20", ".20"] * 2
    assert [label.get_text() for label in margins.get_yticklabels()] == ["layer 0", "layer 1"]
    notes = " ".join(text.get_text() for text in figure.findobj(Text))
    assert "6 of 8 heads have a certified SVM" in notes
    assert "first token whatever the input" in notes
    assert "hatched" in notes


def test_one_layer_and_many_heads_go() -> None:
    assert draw_heads({}) is None
    assert draw_heads(values(1, 4)) is not None
    wide = draw_heads(values(1, 32))
    assert wide is not None
    assert [text.get_text() for text in wide.axes[1].texts] == ["F", "L"], "numbers would not fit"
    alone = draw_heads({"head0/relative_margin/attention": 0.5})
    assert alone is not None
    assert len(alone.axes) == 2, "the map and its bar"
