"""What CloudFormation makes of the templates for given parameters: intrinsic functions worked out, resources without their condition gone."""

from __future__ import annotations

import re

from model import ROOT

PSEUDO = {
    "AWS::AccountId": "123456789012",
    "AWS::Region": "eu-central-1",
    "AWS::Partition": "aws",
    "AWS::URLSuffix": "amazonaws.com",
    "AWS::StackName": "holdfast",
}
NO_VALUE = object()
# What a parameter without a default is given where the caller says nothing.
REQUIRED = {"DatabaseName": "media_tool"}


class Template:
    def __init__(self, template, parameters):
        self.template = template
        self.parameters = {
            name: str(parameters.get(name, declared.get("Default", REQUIRED.get(name, ""))))
            for name, declared in template.get("Parameters", {}).items()
        }

    def condition(self, name):
        return self.value(self.template["Conditions"][name])

    def reference(self, name):
        if name == "AWS::NoValue":
            return NO_VALUE
        if name in self.parameters:
            return self.parameters[name]
        return PSEUDO.get(name, name)  # a resource is its logical id

    def value(self, value):
        if isinstance(value, list):
            return [item for item in map(self.value, value) if item is not NO_VALUE]
        if not isinstance(value, dict):
            return value
        if len(value) == 1:
            function, argument = next(iter(value.items()))
            if function == "Ref":
                return self.reference(argument)
            if function == "Condition" and isinstance(argument, str):
                return self.condition(argument)
            if function.startswith("Fn::"):
                return self.function(function[4:], argument)
        rendered = {key: self.value(item) for key, item in value.items()}
        return {key: item for key, item in rendered.items() if item is not NO_VALUE}

    def function(self, name, argument):
        if name == "If":
            condition, yes, no = argument
            return self.value(yes if self.condition(condition) else no)
        if name == "Sub":
            text, given = argument if isinstance(argument, list) else (argument, {})
            given = {key: self.value(item) for key, item in given.items()}
            return re.sub(r"\$\{([\w:.]+)\}", lambda m: str(given.get(m[1], self.reference(m[1]))), text)
        if name == "GetAtt":
            return ".".join(argument)
        values = self.value(argument)
        if name == "Equals":
            return str(values[0]) == str(values[1])
        if name == "Not":
            return not values[0]
        if name == "And":
            return all(values)
        if name == "Or":
            return any(values)
        if name == "Join":
            items = values[1].split(",") if isinstance(values[1], str) else values[1]
            return values[0].join(map(str, items))
        if name == "Select":
            return values[1].split(",")[int(values[0])] if isinstance(values[1], str) else values[1][int(values[0])]
        raise ValueError(f"Fn::{name} is not known here")

    def resources(self):
        found = {}
        for name, resource in self.template.get("Resources", {}).items():
            if "Condition" in resource and not self.condition(resource["Condition"]):
                continue
            found[name] = {"Type": resource["Type"], "Properties": self.value(resource.get("Properties", {}))}
        return found


def rendered(project, parameters):
    """By path of a template, its resources by logical id, for a deployment with these parameters."""
    root = Template(project.templates[ROOT], parameters).resources()
    found = {ROOT: root}
    for stack in root.values():
        if stack["Type"] == "AWS::CloudFormation::Stack":
            path = stack["Properties"]["TemplateURL"]
            found[path] = Template(project.templates[path], stack["Properties"].get("Parameters", {})).resources()
    return found
