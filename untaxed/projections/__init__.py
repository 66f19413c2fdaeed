"""Protected subspaces: of gradients, by reference losses (OGPSA); of layers' inputs, by general prompts (NSPO)."""

from ._activations import project_activations as project_activations
from ._activations import projected_linear as projected_linear
from ._covariance import Covariances as Covariances
from ._covariance import covariances as covariances
from ._gradients import reference_gradients as reference_gradients
from ._layers import linear_layers as linear_layers
from ._losses import ReferenceSet as ReferenceSet
from ._losses import reference_sets as reference_sets
from ._nullspace import NullSpace as NullSpace
from ._orthogonal import Orthogonal as Orthogonal
from ._protect import Protect as Protect
from ._rows import NSPO as NSPO
from ._rows import OGPSA as OGPSA
from ._span import Span as Span
from ._span import gram_schmidt as gram_schmidt
from ._span import inner_products as inner_products
from ._span import removed_coordinates as removed_coordinates
from ._subspace import Subspace as Subspace
from ._subspace import protected_subspace as protected_subspace
