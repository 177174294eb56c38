"""Models of the Hugging Face hub that have short names, and what others have published on them.

A revision stands here only where public repositories that have nothing to do with each other pin the same
commit, and a figure only as its paper gives it: nothing in this table was measured by Captioner.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CATALOGUE", "KnownModel", "known_model"]


@dataclass(frozen=True, kw_only=True)
class KnownModel:
    """A model of the hub that has a short name.

    Attributes:
        name: what to give to ``--model``.
        repository: ``owner/name`` on the hub.
        revision: the commit that is fetched; None for the newest one of the first download, which is kept.
        megabytes: what is downloaded, in 10**6 bytes.
        licence: of the weights, as SPDX names it.
        cider: CIDEr × 100 on the Karpathy test split of COCO, as published; None where nothing is.
        source: where ``cider`` is published, and of what; empty for nothing.
        gives: what of :class:`~captioner.runners.base.Lacks` the model does not lack, with all extras.
    """

    name: str
    repository: str
    revision: str | None
    megabytes: int
    licence: str
    cider: float | None = None
    source: str = ""
    gives: tuple[str, ...]


_OURS = ("attention", "streaming", "seeds", "beams")
_LIBRARYS = ("streaming", "seeds", "beams", "stops")
_ASKED = (*_LIBRARYS, "instructions", "schemas")

CATALOGUE = (
    KnownModel(
        name="vit-gpt2",
        repository="nlpconnect/vit-gpt2-image-captioning",
        revision="dc68f91c06a1ba6f15268e5b9c13ae7a7c514084",
        megabytes=983,
        licence="Apache-2.0",
        gives=_OURS,
    ),
    KnownModel(
        name="blip-base",
        repository="Salesforce/blip-image-captioning-base",
        revision="82a37760796d32b1411fe092ab5d4e227313294b",
        megabytes=991,
        licence="BSD-3-Clause",
        cider=133.3,
        source="arXiv:2201.12086, ViT-B with CapFilt-L",
        gives=_OURS,
    ),
    KnownModel(
        name="blip-large",
        repository="Salesforce/blip-image-captioning-large",
        revision="353689b859fcf0523410b1806dace5fb46ecdf41",
        megabytes=1880,
        licence="BSD-3-Clause",
        cider=136.7,
        source="arXiv:2201.12086, ViT-L",
        gives=_OURS,
    ),
    KnownModel(
        name="git-base",
        repository="microsoft/git-base-coco",
        revision="a13141da42abd4a8cbf283601a8104265f537cee",
        megabytes=708,
        licence="MIT",
        cider=131.4,
        source="arXiv:2205.14100, GIT_B",
        gives=_LIBRARYS,
    ),
    KnownModel(
        name="git-large",
        repository="microsoft/git-large-coco",
        revision=None,
        megabytes=1580,
        licence="MIT",
        cider=138.5,
        source="arXiv:2205.14100, GIT_L",
        gives=_LIBRARYS,
    ),
    KnownModel(
        name="florence-2-base",
        repository="florence-community/Florence-2-base",
        revision="00921df66db728a9ceb750f5eca43e5c203a2051",
        megabytes=467,
        licence="MIT",
        cider=133.0,
        source="arXiv:2311.06242, zero-shot",
        gives=(*_OURS, "details"),
    ),
    KnownModel(
        name="florence-2-large",
        repository="florence-community/Florence-2-large",
        revision="4271c66b88cdbc05735372ec13b2360108de5317",
        megabytes=1557,
        licence="MIT",
        cider=135.6,
        source="arXiv:2311.06242, zero-shot",
        gives=(*_OURS, "details"),
    ),
    KnownModel(
        name="blip-2",
        repository="Salesforce/blip2-opt-2.7b-coco",
        revision=None,
        megabytes=15000,
        licence="MIT",
        cider=145.8,
        source="arXiv:2301.12597, ViT-g with OPT 2.7B",
        gives=_ASKED,  # its queries gather the photo, so there is no grid of it
    ),
    KnownModel(
        name="smolvlm2-500m",
        repository="HuggingFaceTB/SmolVLM2-500M-Video-Instruct",
        revision="7b375e1b73b11138ff12fe22c8f2822d8fe03467",
        megabytes=2035,
        licence="Apache-2.0",
        gives=("attention", *_ASKED),
    ),
    KnownModel(
        name="qwen3-vl-2b",
        repository="Qwen/Qwen3-VL-2B-Instruct",
        revision="89644892e4d85e24eaac8bacfd4f463576704203",
        megabytes=4267,
        licence="Apache-2.0",
        gives=("attention", *_ASKED),
    ),
)


def known_model(name: str) -> KnownModel | None:
    """The model of that short name, if there is one."""
    return next((model for model in CATALOGUE if model.name == name), None)
