"""The claims and the papers' figures. Nothing else in this package types in a figure of a paper."""

from dataclasses import dataclass
from typing import Literal

LORA_PAPER = "Hu et al. 2021, arXiv:2106.09685"
QLORA_PAPER = "Dettmers et al. 2023, arXiv:2305.14314"
Relation = Literal["=", "≤", "≥", "same sign"]


@dataclass(frozen=True)
class Claim:
    """One claim.

    Attributes:
        name: Such as "C3".
        text: What is claimed.
        source: Who claims it, and where.
        how: How our figure is obtained.
        command: What gets it.
    """

    name: str
    text: str
    source: str
    how: str
    command: str


@dataclass(frozen=True)
class Published:
    """One figure of a paper.

    Attributes:
        claim: The claim it belongs to.
        what: The figure; our row has the same name.
        value: The paper's figure.
        unit: "B" is bytes; "%" and "points" are hundredths.
        relation: How ours should stand to it.
        tolerance: Largest relative difference that still agrees, or absolute where `value` is 0;
            1% by default, as the papers round.
        is_shown: Whether the table of claims shows it.
    """

    claim: str
    what: str
    value: float
    unit: str
    relation: Relation = "="
    tolerance: float = 0.01
    is_shown: bool = False


_COUNTED = "computed: lorakit's layers on a model without weights"
_PLANNED = "planned: the training step on fake tensors"
_RUN = "python -m benchmarks."
CLAIMS = (
    Claim("C1", "An update of rank r trains r (d + k) numbers instead of d k.",
          "arithmetic", _COUNTED, f"{_RUN}claims counts"),
    Claim("C2", "DistilBERT with r=8 on q_lin and v_lin trains 1.0925% of its parameters, the "
          "head included.", "a published run of PEFT", _COUNTED, f"{_RUN}claims counts"),
    Claim("C3", "GPT-3 175B with r=4 on query and value has a checkpoint about 10,000 times "
          "smaller.", f"{LORA_PAPER}, section 4.2 and appendix F", _COUNTED,
          f"{_RUN}claims counts"),
    Claim("C4", "RoBERTa and DeBERTa train 0.3 to 4.7 million numbers.",
          f"{LORA_PAPER}, table 2", _COUNTED, f"{_RUN}claims counts"),
    Claim("C5", "Memory of training with Adam falls by up to 2/3.",
          f"{LORA_PAPER}, section 4.2", f"{_PLANNED}; measured on a model of 69 million",
          f"{_RUN}claims plans; {_RUN}step"),
    Claim("C6", "Training is about 25% faster, because no gradient of frozen weights is computed.",
          f"{LORA_PAPER}, section 4.2", "measured", f"{_RUN}step"),
    Claim("C7", "A merged adapter adds no latency; adapter layers add 2% to 30%.",
          f"{LORA_PAPER}, table 1", "measured", f"{_RUN}latency"),
    Claim("C8", "A small rank on more matrices beats a large one on a single matrix, and a rank "
          "of 1 or 2 is competitive.", f"{LORA_PAPER}, tables 4, 5 and 6", "measured",
          f"{_RUN}claims quality"),
    Claim("C9", "The top directions of a small rank lie inside those of a large one, and what an "
          "update amplifies falls with its rank.", f"{LORA_PAPER}, sections 7.2 and 7.3",
          "measured on the adapters of C8", f"{_RUN}claims directions"),
    Claim("C10", "∂L/∂B = s (∂L/∂h) xᵀAᵀ and ∂L/∂A = s Bᵀ (∂L/∂h) xᵀ.", "calculus",
          "computed: the layer's backward in float64", f"{_RUN}claims arithmetic"),
    Claim("C11", "A LLaMA of 7B takes 5 GB in 4 bits; its input gradients take more than its "
          "LoRA weights.", f"{QLORA_PAPER}, section 2", _PLANNED, f"{_RUN}claims plans"),
    Claim("C12", "A LLaMA of 65B trains in less than 48 GB; in 16 bits it takes more than 780.",
          f"{QLORA_PAPER}, section 1", _PLANNED, f"{_RUN}claims plans"),
    Claim("C13", "Double quantization takes the scales from 0.5 to 0.127 bits per parameter.",
          f"{QLORA_PAPER}, section 3", "computed: the bytes of a quantized layer",
          f"{_RUN}claims arithmetic"),
    Claim("C14", "Absmax int8 of [-1024, 5, 2048, 256] is [-64, 0, 127, 16]; beside 100,000 the "
          "100 becomes 0, but not with a scale for each block.", "arithmetic",
          "computed: lorakit's quantization", f"{_RUN}claims arithmetic"),
    Claim("C15", "The trained share can be as small as 0.01%.",
          f"{LORA_PAPER}, section 1", _COUNTED, f"{_RUN}claims counts"),
    Claim("C16", "The truncated SVD is the best approximation of its rank, with (m + n) r numbers.",
          "Eckart and Young 1936", "computed: a weight of the quickstart's base",
          f"{_RUN}claims arithmetic"),
)  # fmt: skip

MILLION, MB, GB = 1e6, 1e6, 1e9
GPT3_BYTES = {"LoRA": 350 * GB, "full": 1200 * GB}
"""Memory of training GPT-3 175B (section 4.2)."""
TOKENS_PER_S = {"LoRA": 43.1, "full": 32.5}
"""Throughput of one V100 on GPT-3 175B, behind the paper's 25% (section 4.2, footnote 5)."""
TABLE_1 = {"1 x 128": (20.7, 30.3), "16 x 256": (5.0, 8.4), "32 x 512": (2.2, 3.0)}
"""What the smaller and the larger kind of adapter layers add to the latency, in percent."""
TABLE_4 = {"WikiSQL": {"full": 73.8, "LoRA": 74.0}, "MNLI": {"full": 89.5, "LoRA": 91.6}}
"""GPT-3 fine-tuned in full, and with 37.7 million trained numbers."""
TABLE_5 = {
    "q": (8, 70.4, 91.0),
    "k": (8, 70.0, 90.8),
    "v": (8, 73.0, 91.0),
    "o": (8, 73.2, 91.3),
    "q + k": (4, 71.4, 91.3),
    "q + v": (4, 73.7, 91.3),
    "q + k + v + o": (2, 73.7, 91.7),
}
"""Rank, WikiSQL and MNLI at 18 million trained numbers of GPT-3."""
TABLE_6 = {"WikiSQL": (73.4, 73.3, 73.7, 73.8, 73.5), "MNLI": (91.3, 91.4, 91.3, 91.6, 91.4)}
"""r = 1, 2, 4, 8, 64 on query and value of GPT-3."""
FIGURE_6_ADAPTERS = 0.90
"""The adapters of QLoRA's figure 6, as a share of what r=64 on every linear layer has."""

_SAVED_BYTES = round(100 * (1 - GPT3_BYTES["LoRA"] / GPT3_BYTES["full"]), 1)
_SAVED_S = round(100 * (1 - TOKENS_PER_S["full"] / TOKENS_PER_S["LoRA"]), 1)
_FASTER = round(100 * (TOKENS_PER_S["LoRA"] / TOKENS_PER_S["full"] - 1), 1)
_SINGLE = list(TABLE_5.values())[:4]
_ALL_FOUR = TABLE_5["q + k + v + o"]
_SPREAD_GAIN = min(_ALL_FOUR[place] - max(one[place] for one in _SINGLE) for place in (1, 2))
_RANK_1_LOSS = min(accuracies[0] - max(accuracies) for accuracies in TABLE_6.values())
_AGAINST_FULL = min(accuracies["LoRA"] - accuracies["full"] for accuracies in TABLE_4.values())
_NO_ERROR = 1e-12


def _parameters(claim: str, millions: dict[str, float], shown: tuple[str, ...]) -> list[Published]:
    return [
        Published(claim, what, value * MILLION, "parameters", is_shown=what in shown)
        for what, value in millions.items()
    ]


FIGURES = (
    Published("C1", "64 × 512, r=8", 4608, "parameters", tolerance=0, is_shown=True),
    Published("C1", "500 × 400, r=4", 3600, "parameters", tolerance=0, is_shown=True),
    Published("C1", "512 × 512, r=1", 1024, "parameters", tolerance=0, is_shown=True),
    Published("C2", "trained", 739_586, "parameters", tolerance=0, is_shown=True),
    Published("C2", "in the factors", 147_456, "parameters", tolerance=0),
    Published("C2", "in the head", 592_130, "parameters", tolerance=0),
    Published("C2", "all, as PEFT counts", 67_694_596, "parameters", tolerance=0),
    Published("C2", "trained of all", 1.0925, "%", tolerance=1e-4, is_shown=True),
    *_parameters("C3", {"qv, r=1": 4.7, "qv, r=2": 9.4, "qv, r=4": 18.8, "qv, r=8": 37.7,
                        "qv, r=64": 301.9}, ("qv, r=4",)),
    *_parameters("C3", {"qkvo, r=1": 9.4, "qkvo, r=2": 18.8, "qkvo, r=4": 37.7,
                        "qkvo, r=64": 603.8}, ()),
    Published("C3", "adapter in 16 bits, qv, r=4", 35 * MB, "B", is_shown=True),
    Published("C3", "model in 16 bits, qv, r=4", 350 * GB, "B"),
    Published("C3", "model / adapter", 10_000, "×", is_shown=True),
    *_parameters("C4", {"RoBERTa base, r=8 on q and v": 0.295, "RoBERTa large, r=8 on q and v":
                        0.786, "DeBERTa XXL, r=16 on q and v": 4.72},
                 ("RoBERTa base, r=8 on q and v", "DeBERTa XXL, r=16 on q and v")),
    Published("C5", "full, peak", GPT3_BYTES["full"], "B"),
    Published("C5", "LoRA, peak", GPT3_BYTES["LoRA"], "B"),
    Published("C5", "memory saved, GPT-3", _SAVED_BYTES, "%", is_shown=True, tolerance=0.1),
    Published("C5", "memory saved, measured", 100 * 2 / 3, "%", "≤", is_shown=True),
    Published("C6", "time saved", _SAVED_S, "%", is_shown=True, tolerance=0.1),
    Published("C6", "more tokens per second", _FASTER, "%", is_shown=True, tolerance=0.1),
    Published("C6", "time of the frozen limit", 100 * 2 / 3, "%", "≥"),
    *(Published("C7", f"merged, {batch}", 0.0, "%", tolerance=1.0, is_shown=batch == "1 x 128")
      for batch in TABLE_1),
    *(Published("C7", f"unmerged, {batch}", larger, "%", "≤", is_shown=batch == "1 x 128")
      for batch, (_, larger) in TABLE_1.items()),
    Published("C8", "LoRA r=8 on every linear layer against full", _AGAINST_FULL, "points", "≥",
              is_shown=True),
    Published("C8", "r=1 against the best rank", _RANK_1_LOSS, "points", "≥", is_shown=True),
    Published("C8", "q + k + v + o against the best single matrix", _SPREAD_GAIN, "points",
              "same sign", is_shown=True),
    Published("C9", "φ of the top directions of A, r=8 and r=64", 0.5, "", "≥", is_shown=True),
    Published("C9", "amplification factor, r=4", 21.5, "", is_shown=True),
    Published("C9", "amplification factor, r=64", 2.0, "", is_shown=True, tolerance=0.1),
    Published("C10", "∂L/∂B", 0.0, "", tolerance=_NO_ERROR, is_shown=True),
    Published("C10", "∂L/∂A", 0.0, "", tolerance=_NO_ERROR, is_shown=True),
    Published("C11", "LoRA weights at 0.2 % in 16 bits", 26 * MB, "B", tolerance=0.05,
              is_shown=True),
    Published("C11", "QLoRA, kept for backward", 567 * MB, "B", is_shown=True, tolerance=0.05),
    Published("C11", "QLoRA, checkpointing, kept for backward", 18 * MB, "B", tolerance=0.05),
    Published("C11", "QLoRA, weights of the base", 5048 * MB, "B", is_shown=True, tolerance=0.05),
    Published("C12", "full, 16 bits, peak", 780 * GB, "B", "≥", is_shown=True),
    Published("C12", "twelve bytes a parameter", 780 * GB, "B"),
    Published("C12", "QLoRA, peak", 48 * GB, "B", "≤", is_shown=True),
    Published("C13", "the scales, one level", 0.5, "bits"),
    Published("C13", "the scales, double quantization", 0.127, "bits", is_shown=True),
    Published("C13", "all, double quantization", 4.127, "bits", is_shown=True),
    Published("C14", "c = 127 / largest number", 0.062, "", is_shown=True),
    Published("C14", "codes, largest difference", 0.0, "", tolerance=0, is_shown=True),
    Published("C14", "100 beside 100,000, one scale", 0.0, "", tolerance=0),
    Published("C14", "100 beside 100,000, a scale for each block", 100.0, "", tolerance=0),
    Published("C15", "qv, r=4", 0.01, "%", tolerance=0.1, is_shown=True),
    Published("C16", "error of the cut SVD / tail of the spectrum", 1.0, "", tolerance=1e-6,
              is_shown=True),
    Published("C16", "error of random factors / tail of the spectrum", 1.0, "", "≥",
              is_shown=True),
)  # fmt: skip
"""The papers' figures, in the order of the page."""
