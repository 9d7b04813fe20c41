"""One typed config a command, strict about unknown keys; the same keys in YAML, flags and Python."""

from tlray.config.advice import AdviseConfig, ReportConfig
from tlray.config.extraction import ExtractConfig, PolicyConfig, PredictConfig, RunConfig
from tlray.config.recipe import PreprocessingConfig, RecipeConfig, TokensConfig
from tlray.config.search import DuplicatesConfig, IndexConfig, SearchConfig, ServeConfig
from tlray.config.section import FailureCode, Section, Side
from tlray.config.source import SourceConfig
from tlray.config.table import AliasConfig, OptimizeConfig, ShowConfig, VacuumConfig, VerifyConfig
from tlray.config.training import (
    ExamplesConfig,
    ExportConfig,
    FitConfig,
    GridConfig,
    HeadConfig,
    NetworkConfig,
    SplitConfig,
    TrainConfig,
)

__all__ = [
    "AdviseConfig",
    "AliasConfig",
    "DuplicatesConfig",
    "ExamplesConfig",
    "ExportConfig",
    "ExtractConfig",
    "FailureCode",
    "FitConfig",
    "GridConfig",
    "HeadConfig",
    "IndexConfig",
    "NetworkConfig",
    "OptimizeConfig",
    "PolicyConfig",
    "PredictConfig",
    "PreprocessingConfig",
    "RecipeConfig",
    "ReportConfig",
    "RunConfig",
    "SearchConfig",
    "Section",
    "ServeConfig",
    "ShowConfig",
    "Side",
    "SourceConfig",
    "SplitConfig",
    "TokensConfig",
    "TrainConfig",
    "VacuumConfig",
    "VerifyConfig",
]
