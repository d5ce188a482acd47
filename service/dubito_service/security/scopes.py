"""Scopes: what a token may be for, and which of them each RPC needs."""

from __future__ import annotations

from enum import StrEnum


class Scope(StrEnum):
    """One kind of calls; none includes another."""

    PREDICT = "predict"  # ask for answers, and about models
    OBSERVE = "observe"  # bring labels back
    ADMIN = "admin"  # change what is served


_UNCERTAINTY, _MODELS, _OPEN = (
    "dubito.v1.UncertaintyService",
    "dubito.v1.ModelService",
    "inference.GRPCInferenceService",
)

_METHODS: dict[str, dict[Scope | None, tuple[str, ...]]] = {
    _UNCERTAINTY: {
        Scope.PREDICT: ("Predict", "PredictStream", "PredictBulk", "Evaluate"),
        Scope.OBSERVE: ("Observe",),
    },
    _MODELS: {Scope.PREDICT: ("ListModels", "GetModel"), Scope.ADMIN: ("LoadModel", "UnloadModel")},
    _OPEN: {
        None: ("ServerLive", "ServerReady"),
        Scope.PREDICT: (
            "ModelReady",
            "ServerMetadata",
            "ModelMetadata",
            "ModelConfig",
            "ModelStatistics",
            "RepositoryIndex",
            "ModelInfer",
            "ModelStreamInfer",
        ),
        Scope.ADMIN: ("RepositoryModelLoad", "RepositoryModelUnload"),
    },
    # Probes have no token; and what the services look like is no secret.
    "grpc.health.v1.Health": {None: ("Check", "Watch", "List")},
    "grpc.reflection.v1alpha.ServerReflection": {None: ("ServerReflectionInfo",)},
    "grpc.reflection.v1.ServerReflection": {None: ("ServerReflectionInfo",)},
}

SCOPES: dict[str, Scope | None] = {
    f"/{service}/{method}": scope
    for service, scopes in _METHODS.items()
    for scope, methods in scopes.items()
    for method in methods
}

# Probes are answered whatever else is under way: a server that is busy is alive.
PROBES = frozenset(
    ("/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch", f"/{_OPEN}/ServerLive", f"/{_OPEN}/ServerReady")
)


def scope_of(method: str) -> Scope | None:
    """Return the scope that "/package.Service/Method" needs, None where it is open; what is not known needs admin."""
    return SCOPES.get(method, Scope.ADMIN)
