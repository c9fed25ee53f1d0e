"""What an adapter is made of."""

import pytest

from lorakit.adapters import Adapter
from lorakit.analysis import analyze_adapter, write_report
from lorakit.runs.adapters import read_adapter

pytestmark = pytest.mark.anyio


async def test_an_adapter_shows_its_facts_and_its_analysis(user, root, studio):
    adapter = read_adapter(root, root / "runs" / "german" / "adapter")
    await user.open("/adapters?path=runs/german")
    await user.should_see("CAUSAL_LM")
    await user.should_see(f"{adapter.parameters:,}")
    await user.should_see("Analyse")
    analysis = analyze_adapter(Adapter.load(adapter.directory))
    write_report(adapter.analysis_folder, analysis)
    await user.open("/adapters?path=runs/german")
    await user.should_see("The largest updates")
    largest = max(analysis.updates, key=lambda update: update.norm)
    await user.should_see(largest.path)
    await user.should_see(f"{largest.norm:.3g}")
    await user.should_see("Norm and effective rank by layer")
    for picture in adapter.analysis_folder.glob("similarity-*.png"):
        width = picture.stem.partition("-")[2]
        await user.should_see(f"Similarity of the updates that read {width} features")
    await user.should_see("All of it is in runs/german/analysis")
