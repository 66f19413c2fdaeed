"""Model directories: checking, loading and atomic saving. Only safetensors and JSON are read."""

from ._bars import no_bars as no_bars
from ._carry import carry_files as carry_files
from ._check import check_model_dir as check_model_dir
from ._check import fingerprint as fingerprint
from ._finite import check_finite as check_finite
from ._layout import layout as layout
from ._lazy import LazyWeights as LazyWeights
from ._load import load_model as load_model
from ._load import load_tokenizer as load_tokenizer
from ._load import load_weights as load_weights
from ._open import is_directory as is_directory
from ._open import open_source as open_source
from ._open import parts_of as parts_of
from ._parents import Fit as Fit
from ._parents import common_kind as common_kind
from ._parents import fit as fit
from ._parents import wider as wider
from ._rows import check_tokenizer as check_tokenizer
from ._save import disk_is_full as disk_is_full
from ._save import flush as flush
from ._save import no_space as no_space
from ._save import recover as recover
from ._save import save_model as save_model
from ._source import Kind as Kind
from ._source import Source as Source
from ._writer import ShardedWriter as ShardedWriter
