import matplotlib.image
import numpy as np
import pytest

from abmll.report.reliability import reliability_png


def test_the_picture_shows_the_bins(tmp_path, monkeypatch):
    import matplotlib.pyplot as plt

    kept = []
    monkeypatch.setattr(plt, "close", kept.append)
    confidence = np.array([0.45, 0.45, 0.95, 0.95, 0.95, 0.95])
    correct = np.array([1, 0, 1, 1, 1, 0])
    path = reliability_png(
        tmp_path / "r.png", {"one": (confidence, correct), "other": (confidence, correct)}, title="t"
    )
    (figure,) = kept
    bars = figure.axes[0].containers[0]
    assert [(bar.get_x(), bar.get_height()) for bar in bars] == [
        (pytest.approx(0.4), pytest.approx(0.5)),
        (pytest.approx(0.9), pytest.approx(0.75)),
    ]
    gaps = figure.axes[0].containers[1]
    assert [bar.get_y() + bar.get_height() for bar in gaps] == [pytest.approx(0.45), pytest.approx(0.95)]
    assert "accuracy 66.7%   ECE 0.150" in figure.axes[0].get_title()
    assert [p.name for p in tmp_path.iterdir()] == ["r.png"]
    assert matplotlib.image.imread(path).shape[1] > 500
    monkeypatch.undo()
    plt.close(figure)
