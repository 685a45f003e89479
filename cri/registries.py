"""From the configuration to how registries are reached: the daemon's view of it, and a login's."""

from __future__ import annotations

from dataclasses import replace

from cri.config import Config
from registratur import DockerConfig, HostOptions, HostsConfig, RegistryError, read_hosts


def hosts(config: Config) -> tuple[HostsConfig, list[str]]:
    """The operator's registries, in the words of the client, and what is wrong with files about them. Blocks."""
    found = HostsConfig(
        mirrors={name: registry.mirrors for name, registry in config.registries.items()},
        options={
            name: HostOptions(registry.ca_file, registry.skip_verify, proxy=registry.proxy)
            for name, registry in config.registries.items()
            if registry.ca_file is not None or registry.skip_verify or registry.proxy is not None
        },
    )
    problems: list[str] = []
    if config.image.hosts_dir is not None:
        found, problems = read_hosts(config.image.hosts_dir, found)
    if (file := config.image.credentials_file) is not None:
        try:
            keychain = DockerConfig.read(file)
        except (OSError, RegistryError) as error:
            problems.append(str(error))
        else:
            found = replace(found, keychain=keychain)
            problems += keychain.remarks()
    return found, problems
