"""Schemas of the two Prometheus-operator kinds the chart makes; kubernetes-validate knows only Kubernetes' own."""

LABELS = {"type": "object", "additionalProperties": {"type": "string"}}
META = {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}, "labels": LABELS}}
SECRET_KEY = {"type": "object", "required": ["name", "key"], "additionalProperties": False,
              "properties": {"name": {"type": "string"}, "key": {"type": "string"}}}
IN_SECRET = {"type": "object", "properties": {"secret": SECRET_KEY}, "required": ["secret"], "additionalProperties": False}
DURATION = {"type": "string", "pattern": "^([0-9]+(ms|s|m|h|d))+$"}


def operator_kind(kind, spec):
    return {"type": "object", "additionalProperties": False, "required": ["apiVersion", "kind", "metadata", "spec"],
            "properties": {"apiVersion": {"const": "monitoring.coreos.com/v1"}, "kind": {"const": kind}, "metadata": META, "spec": spec}}


ENDPOINT = {"type": "object", "additionalProperties": False, "required": ["port"], "properties": {
    "port": {"type": "string"}, "path": {"type": "string"}, "interval": DURATION, "scheme": {"enum": ["http", "https"]},
    "tlsConfig": {"type": "object", "additionalProperties": False, "properties": {
        "serverName": {"type": "string"}, "ca": IN_SECRET, "cert": IN_SECRET, "keySecret": SECRET_KEY}},
    "authorization": {"type": "object", "additionalProperties": False, "properties": {"credentials": SECRET_KEY}}}}

RULE = {"type": "object", "additionalProperties": False, "required": ["expr"],
        "oneOf": [{"required": ["alert"]}, {"required": ["record"]}],
        "properties": {"alert": {"type": "string"}, "record": {"type": "string"}, "expr": {"type": "string"}, "for": DURATION,
                       "labels": LABELS, "annotations": LABELS}}

OPERATOR = {
    "ServiceMonitor": operator_kind("ServiceMonitor", {
        "type": "object", "additionalProperties": False, "required": ["selector", "endpoints"], "properties": {
            "selector": {"type": "object", "additionalProperties": False, "properties": {"matchLabels": LABELS}},
            "endpoints": {"type": "array", "minItems": 1, "items": ENDPOINT}}}),
    "PrometheusRule": operator_kind("PrometheusRule", {
        "type": "object", "additionalProperties": False, "required": ["groups"], "properties": {"groups": {
            "type": "array", "minItems": 1, "items": {"type": "object", "additionalProperties": False, "required": ["name", "rules"],
                                                      "properties": {"name": {"type": "string"}, "interval": DURATION,
                                                                     "rules": {"type": "array", "minItems": 1, "items": RULE}}}}}}),
}
