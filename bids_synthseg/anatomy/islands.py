"""Islands: small stray components of a label go to the neighbour that the posteriors favour.

Components are connected by faces (6 neighbours), found by cc3d for all labels in one pass.
"""

from collections.abc import Callable

import cc3d
import numpy as np

from bids_synthseg.anatomy.labels import LabelTable

# Voxel volumes come from float32 headers: 15 voxels of 0.9999999 mm3 are 15 mm3.
_VOLUME_TOLERANCE = 1e-5


def remove_islands(
    labels: np.ndarray,
    voxel_volume_mm3: float,
    posterior_at: Callable[[np.ndarray], np.ndarray],
    table: LabelTable,
    max_island_mm3: float = 15.0,
) -> tuple[np.ndarray, int]:
    """Label map (X, Y, Z) without islands, and the number of voxels that changed.

    An island is a component of a label, not background, that is smaller than the label's largest
    and than `max_island_mm3`. As a whole it takes, among the labels of the kept voxels (background
    too) that touch it by a face, the one with the highest mean posterior over the island; a tie
    goes to the earlier row of `table`. Islands that touch nothing but islands wait until one of
    those is settled: from the rim inwards. The result does not depend on the order of voxels.

    posterior_at: voxel indices (N, 3) -> (N, C) posteriors of the rows of `table`. Raises
    ValueError for an id the table has not, or posteriors of another width.
    """
    component = cc3d.connected_components(labels, connectivity=6)
    size = np.bincount(component.ravel())
    label = np.zeros(len(size), dtype=labels.dtype)  # component 0 is background
    label[component] = labels
    channel = _channels(label, table)

    largest = np.zeros(len(table), dtype=size.dtype)
    np.maximum.at(largest, channel, size)
    small = size * voxel_volume_mm3 < max_island_mm3 * (1 - _VOLUME_TOLERANCE)
    is_island = small & (size < largest[channel])  # never background: it is one component
    if not is_island.any():
        return labels.copy(), 0

    ijk = np.argwhere(is_island[component])
    owner = component[tuple(ijk.T)]
    support = _support(posterior_at(ijk), owner, len(table))
    channel = _settle(channel, is_island, _touching(component, ijk, owner), support)
    cleaned = labels.copy()
    cleaned[tuple(ijk.T)] = table.ids[channel[owner]]
    return cleaned, int(np.count_nonzero(cleaned != labels))


def fill_holes(mask: np.ndarray) -> np.ndarray:
    """Mask (X, Y, Z) with everything filled that no path of faces joins to the array's border."""
    component = cc3d.connected_components(~mask.astype(bool), connectivity=6)
    outside = np.zeros(int(component.max()) + 1, dtype=bool)
    for axis in range(3):
        outside[component.take((0, -1), axis)] = True
    outside[0] = False  # component 0 is the mask itself
    return ~outside[component]


def largest_component(mask: np.ndarray) -> np.ndarray:
    """The largest component of a mask (X, Y, Z); of equals the first one, empty stays empty."""
    component = cc3d.connected_components(mask.astype(bool), connectivity=6)
    size = np.bincount(component.ravel())
    size[0] = 0
    return (component == size.argmax()) & (component > 0)


def _channels(label: np.ndarray, table: LabelTable) -> np.ndarray:
    present, position = np.unique(label, return_inverse=True)
    unknown = sorted(set(present.tolist()) - set(table.ids.tolist()))
    if unknown:
        raise ValueError(f"labels {unknown} are not in the label table")
    return np.array([table.channel_of(index) for index in present.tolist()])[position]


def _support(posterior: np.ndarray, owner: np.ndarray, n_labels: int) -> np.ndarray:
    """(n_islands, C) sums of (N, C) over the voxels of each island, islands in rising order.

    Within an island the sums rank the labels as the means do.
    """
    if posterior.shape != (len(owner), n_labels):
        raise ValueError(f"posteriors {posterior.shape} do not fit {(len(owner), n_labels)}")
    order = np.argsort(owner, kind="stable")
    _, start = np.unique(owner[order], return_index=True)
    return np.add.reduceat(posterior[order].astype(np.float64), start, axis=0)


def _touching(component: np.ndarray, ijk: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """(P, 2) distinct pairs (island, other component it shares a face with)."""
    pairs = []
    for axis in range(3):
        for step in (-1, 1):
            beside = ijk.copy()
            beside[:, axis] += step
            within = (beside[:, axis] >= 0) & (beside[:, axis] < component.shape[axis])
            pairs.append(np.stack((owner[within], component[tuple(beside[within].T)]), axis=1))
    found = np.unique(np.concatenate(pairs), axis=0)
    return found[found[:, 0] != found[:, 1]]


def _settle(
    channel: np.ndarray, is_island: np.ndarray, touching: np.ndarray, support: np.ndarray
) -> np.ndarray:
    """(K,) channel of every component once all islands have joined a neighbour.

    Every label keeps its largest component and the array is one piece, so each round settles at
    least one island until none is left.
    """
    channel, waiting = channel.copy(), is_island.copy()
    row = np.cumsum(is_island) - 1  # of an island in `support`
    while waiting.any():
        island, other = touching[waiting[touching[:, 0]] & ~waiting[touching[:, 1]]].T
        score = support[row[island], channel[other]]
        best_first = np.lexsort((channel[other], -score, island))
        settled, first = np.unique(island[best_first], return_index=True)
        channel[settled] = channel[other[best_first[first]]]
        waiting[settled] = False
    return channel
