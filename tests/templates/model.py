"""The templates as data: loading with CloudFormation's short tags, and following a value across nested stacks."""

from __future__ import annotations

import dataclasses
import json
import re
import tomllib
from pathlib import Path

import yaml

ROOT = "template.yaml"
# Names of that form in the functions' sources that are something else: an alarm's.
NOT_METRICS = {"BackupMissing"}
# Of what the methods of shared/src/report.rs emit.
DIMENSIONS = {"measure": ("App", "Environment"), "measure_database": ("App", "Environment", "Database")}


class _Loader(yaml.SafeLoader):
    pass


def _tag(loader, suffix, node):
    if isinstance(node, yaml.ScalarNode):
        value = loader.construct_scalar(node)
    elif isinstance(node, yaml.SequenceNode):
        value = loader.construct_sequence(node, deep=True)
    else:
        value = loader.construct_mapping(node, deep=True)
    if suffix == "GetAtt" and isinstance(value, str):
        value = value.split(".", 1)
    return {suffix if suffix in ("Ref", "Condition") else f"Fn::{suffix}": value}


_Loader.add_multi_constructor("!", _tag)


@dataclasses.dataclass(frozen=True)
class Finding:
    rule: str
    where: str
    message: str

    def __str__(self):
        return f"[{self.rule}] {self.where}: {self.message}"


@dataclasses.dataclass
class Project:
    """Everything the checks look at. `templates` maps a path from the root of the repository to its content."""

    templates: dict[str, dict]
    samconfig: dict
    declared_settings: dict[str, frozenset[str]]
    metrics: dict[str, set[tuple[str, ...]]]
    # By path, the Key=Value entries of the files in infra/parameters.
    parameter_files: dict[str, list[str]]
    # The folders that the code gives objects, below the prefix of the deployment.
    key_folders: frozenset[str]
    costs_doc: str
    deploy_doc: str
    runbook: str

    @classmethod
    def load(cls, directory: Path) -> "Project":
        paths = [directory / ROOT, *sorted((directory / "infra").glob("*.yaml"))]
        return cls(
            templates={str(p.relative_to(directory)): yaml.load(p.read_text(), _Loader) for p in paths},
            samconfig=tomllib.loads((directory / "samconfig.toml").read_text()),
            declared_settings=declared_settings(directory),
            metrics=emitted_metrics(directory),
            parameter_files={
                str(p.relative_to(directory)): json.loads(p.read_text()) for p in sorted((directory / "infra" / "parameters").glob("*.json"))
            },
            key_folders=key_folders(directory),
            costs_doc=(directory / "docs" / "costs.md").read_text(),
            runbook=(directory / "docs" / "runbook.md").read_text(),
            deploy_doc=(directory / "docs" / "deploy.md").read_text(),
        )

    def resources(self, *types: str):
        """(path, logical id, resource) of every resource of these types."""
        for path, template in self.templates.items():
            for name, resource in template.get("Resources", {}).items():
                if resource["Type"] in types:
                    yield path, name, resource

    def stack_of(self, path: str):
        """The resource of the root template that nests this one, or None."""
        for name, resource in self.templates[ROOT].get("Resources", {}).items():
            if resource.get("Properties", {}).get("TemplateURL") == path:
                return name, resource
        return None

    def parameter(self, path: str, name: str):
        """The declaration a user fills in: follows a nested template's parameter to the root's of the same chain."""
        if path != ROOT:
            stack = self.stack_of(path)
            value = stack and stack[1]["Properties"].get("Parameters", {}).get(name)
            if isinstance(value, dict) and set(value) == {"Ref"}:
                return self.parameter(ROOT, value["Ref"])
        return self.templates[path].get("Parameters", {}).get(name)

    def resolve(self, path: str, value):
        """(path, logical id) of the resource a Ref or GetAtt comes from in the end, through parameters and outputs."""
        template = self.templates[path]
        if isinstance(value, dict) and set(value) == {"Fn::If"}:
            return next((found for side in branches(value) if (found := self.resolve(path, side))), None)
        if isinstance(value, dict) and "Ref" in value:
            name = value["Ref"]
            if name in template.get("Resources", {}):
                return path, name
            stack = self.stack_of(path)
            if stack and name in stack[1]["Properties"].get("Parameters", {}):
                return self.resolve(ROOT, stack[1]["Properties"]["Parameters"][name])
        if isinstance(value, dict) and "Fn::GetAtt" in value:
            name, attribute = value["Fn::GetAtt"]
            resource = template.get("Resources", {}).get(name)
            if resource is None:
                return None
            nested = resource.get("Properties", {}).get("TemplateURL")
            if nested and attribute.startswith("Outputs."):
                output = self.templates[nested].get("Outputs", {}).get(attribute.removeprefix("Outputs."))
                return output and self.resolve(nested, output["Value"])
            return path, name
        return None

    def numbers(self, path: str, value):
        """The least and greatest number a property can take, as literal or as parameter."""
        if isinstance(value, dict) and set(value) == {"Ref"}:
            parameter = self.parameter(path, value["Ref"]) or {}
            allowed = parameter.get("AllowedValues")
            if allowed:
                return min(map(int, allowed)), max(map(int, allowed))
            return parameter.get("MinValue", float("-inf")), parameter.get("MaxValue", float("inf"))
        return (value, value) if isinstance(value, (int, float)) else (float("nan"), float("nan"))


def branches(value):
    """The values a property can take: both sides of an Fn::If, without AWS::NoValue."""
    if isinstance(value, dict) and set(value) == {"Fn::If"}:
        for side in value["Fn::If"][1:]:
            yield from branches(side)
    elif value != {"Ref": "AWS::NoValue"}:
        yield value


def listed(value):
    """A property that may be one or several, as a list."""
    return value if isinstance(value, list) else [value]


def statements(policy):
    for statement in policy.get("Statement", []):
        yield from branches(statement)


def declared_settings(directory: Path) -> dict[str, frozenset[str]]:
    """By function, the names in the `settings!` lists of shared/src/config that `FUNCTIONS` gives it."""
    lists = {}
    for source in sorted((directory / "shared" / "src" / "config").glob("*.rs")):
        for name, table in re.findall(r"^settings! \{ ?(?:\n\s*)?([A-Z_]+) \{\n(.*?)^\s*\}", source.read_text(), re.DOTALL | re.MULTILINE):
            lists[name] = frozenset(re.findall(r'^\s*[A-Z0-9_]+ = "([A-Z0-9_]+)",', table, re.MULTILINE))
    module = directory / "shared" / "src" / "config" / "mod.rs"
    functions = re.findall(r'\(\s*"([a-z-]+)",\s*&\[([^\]]*)\],?\s*\)', module.read_text()) if module.exists() else []
    return {
        function: frozenset().union(*(lists[name] for name in re.findall(r"[A-Z_]+", names) if name in lists))
        for function, names in functions
    }


def emitted_metrics(directory: Path) -> dict[str, set[tuple[str, ...]]]:
    """By metric, the sets of dimensions with which the functions emit it."""
    found: dict[str, set[tuple[str, ...]]] = {}
    for source in sorted((directory / "functions").glob("*/src/**/*.rs")):
        text = source.read_text().split("#[cfg(test)]")[0]
        spelt = set(re.findall(r'"((?:Backup|Restore|Retention|Export|Snapshot)(?:[A-Z][a-z]+)+)"', text)) - NOT_METRICS
        for method, dimensions in DIMENSIONS.items():
            for call in text.split(f".{method}(")[1:]:
                for metric in re.findall(r'\("(\w+)", Unit::', call.split("],")[0]):
                    found.setdefault(metric, set()).add(dimensions)
        # Counted, or named to be.
        for metric in spelt - set(found):
            found.setdefault(metric, set()).add(DIMENSIONS["measure"])
    return found


def key_folders(directory: Path) -> frozenset[str]:
    source = directory / "shared" / "src" / "domain" / "object_key.rs"
    text = source.read_text().split("#[cfg(test)]")[0] if source.exists() else ""
    return frozenset(re.findall(r'"(?:\{root\}|\{\})([a-z-]+/(?:[a-z-]+/)?)', text))
