"""Teachers that a run trains first: `train_first: true` in a recipe.

A frozen node otherwise names its weights. Here the run makes them, because what helped most in
`recipes/evidence` is a trained teacher, and that should take one command.
"""

from __future__ import annotations

from ..data import derive_seed
from ..graph.topology import LABEL
from ..recipe.images import with_images_of
from ..recipe.node_config import NodeConfig
from ..recipe.recipe import Recipe, check_recipe
from ..records.run_directory import RunDirectory


def teacher_recipe(recipe: Recipe, name: str) -> Recipe:
    """Return the recipe that trains a teacher: the labels alone, the run's own data and settings.

    It sees images of the size and crop that the run's target has. Its seed derives from the run's
    and from the node's name, so that the teacher neither starts from the student's weights nor sees
    the images in its order. Trackers do not see the training.

    Args:
        recipe: The run's recipe.
        name: Name of the node.
    """
    values = recipe.model_dump(mode="json", exclude={"tracking"})
    node = {**values["graph"]["nodes"][name], "train_first": False, "learns_from": {LABEL: {}}}
    seed = derive_seed(f"teacher {name}", recipe.train.seed) % 2**32
    train = {key: value for key, value in values["train"].items() if "model_ema" not in key}
    student = recipe.graph.nodes[recipe.graph.sets_images]
    assert isinstance(student, NodeConfig)
    data = with_images_of(recipe.data, student.model, student.model_kwargs)
    return check_recipe(
        {
            **values,
            "graph": {"target": name, "nodes": {name: node}},
            "data": data.model_dump(mode="json"),
            "train": {**train, "seed": seed},
        }
    )


def with_teachers(recipe: Recipe, directory: RunDirectory) -> Recipe:
    """Return the recipe in which the nodes that are trained first have their weights.

    Args:
        recipe: The run's recipe.
        directory: The run's directory, which holds the teachers' complete runs.
    """
    nodes = dict(recipe.graph.nodes)
    for name in recipe.graph.trained_first:
        weights = directory.teacher(name).nodes / f"{name}.safetensors"
        own = {"checkpoint_path": str(weights), "pretrained": False}
        nodes[name] = nodes[name].model_copy(update=own)
    graph = recipe.graph.model_copy(update={"nodes": nodes})
    return recipe.model_copy(update={"graph": graph})
