"""The family of preference losses: one member of each kind, on which every law is tested."""

from dynamics.losses.cpo import CPO
from dynamics.losses.dpo import DPO, IPO, APODown, APOZero, Hinge, RobustDPO
from dynamics.losses.kto import KTO
from dynamics.losses.orpo import ORPO
from dynamics.losses.preference import Preference
from dynamics.losses.simpo import SimPO

FAMILY: tuple[Preference, ...] = (
    DPO(),
    DPO(label_smoothing=0.1),
    DPO(beta=5.0, length_normalised=True),
    DPO(reference_free=True),
    RobustDPO(),
    IPO(),
    IPO(length_normalised=False),
    Hinge(),
    Hinge(reference_free=True),
    APOZero(),
    APODown(),
    SimPO(),
    CPO(),
    ORPO(),
    KTO(),
    KTO(desirable_weight=1.3, undesirable_weight=0.7),
    DPO(sft_weight=0.5),
)
