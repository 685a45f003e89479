"""A client for OCI registries, and a content store: references in, verified images out, and back.

>>> ref = Reference.parse("busybox")
>>> str(ref)
'docker.io/library/busybox:latest'
"""

from registratur.client import Client
from registratur.content import ContentStore
from registratur.credentials import Credentials
from registratur.digest import compute_digest, parse_digest, split_digest
from registratur.docker_config import DockerConfig
from registratur.errors import (
    ConnectError,
    DigestMismatchError,
    IdleTimeoutError,
    InvalidDigestError,
    InvalidEndpointError,
    InvalidReferenceError,
    MalformedContentError,
    NoMatchingPlatformError,
    NotFoundError,
    RedirectError,
    RegistryError,
    TransportError,
    UnauthorizedError,
    UnavailableError,
    UnsupportedContentError,
)
from registratur.hosts import HostOptions, HostsConfig, RegistryHost
from registratur.hosts_files import read_hosts
from registratur.image_config import ImageConfig
from registratur.manifest import Descriptor, Index, Manifest, parse_manifest
from registratur.platform import Platform
from registratur.progress import LayerEvent, Progress, Step
from registratur.pull import LayerSink, PulledImage, load, pull
from registratur.push import PushedImage, push
from registratur.reference import Reference
from registratur.retry import RetryPolicy
from registratur.sources import BlobSource, LayoutSource

__all__ = [
    "BlobSource",
    "Client",
    "ConnectError",
    "ContentStore",
    "Credentials",
    "Descriptor",
    "DigestMismatchError",
    "DockerConfig",
    "HostOptions",
    "HostsConfig",
    "IdleTimeoutError",
    "ImageConfig",
    "Index",
    "InvalidDigestError",
    "InvalidEndpointError",
    "InvalidReferenceError",
    "LayerEvent",
    "LayerSink",
    "LayoutSource",
    "MalformedContentError",
    "Manifest",
    "NoMatchingPlatformError",
    "NotFoundError",
    "Platform",
    "Progress",
    "PulledImage",
    "PushedImage",
    "RedirectError",
    "Reference",
    "RegistryError",
    "RegistryHost",
    "RetryPolicy",
    "Step",
    "TransportError",
    "UnauthorizedError",
    "UnavailableError",
    "UnsupportedContentError",
    "compute_digest",
    "load",
    "parse_digest",
    "parse_manifest",
    "pull",
    "push",
    "read_hosts",
    "split_digest",
]
