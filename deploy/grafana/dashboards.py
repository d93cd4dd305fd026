"""Builds the Grafana dashboards from tables of panels; help texts come from the daemon's own catalogue of metrics.

A query that names a metric the catalogue does not have is an error here, before any dashboard exists. build() gives
{file stem: JSON text}; deploy/generate writes the files.
"""
import re
from pathlib import Path

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import LegendDisplayMode, LegendPlacement
from grafana_foundation_sdk.models.dashboard import (DashboardCursorSync, DataSourceRef, Threshold, ThresholdsMode,
                                                     VariableRefresh)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

ROOT = Path(__file__).resolve().parents[2]
SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
ONE = 'instance=~"$instance"'
ENGINE = 'instance=~"$instance", engine=~"$engine"'
WORKING = 'method!~"Watch.*|Wait.*"'  # these calls last as long as what they look at
RATE = "[$__rate_interval]"


def catalogue():
    text = (ROOT / "server" / "telemetry" / "metrics.cc").read_text()
    return dict(re.findall(r'\{"(sage_\w+)",\s*"([^"]*)"\}', text))


def quantiles(metric, by="engine"):
    return [(f"histogram_quantile({q}, sum by ({by}, le) (rate({metric}_bucket{{{ENGINE}}}{RATE})))", f"p{round(q * 100)} {{{{{by}}}}}")
            for q in (0.5, 0.9, 0.99)]


def sizes(metric):
    """Counts, whose quantiles below the first bucket would be fractions: the mean and the largest."""
    mean = f"sum by (engine) (rate({metric}_sum{{{ENGINE}}}{RATE})) / sum by (engine) (rate({metric}_count{{{ENGINE}}}{RATE}))"
    return [(mean, "mean {{engine}}"), quantiles(metric)[-1]]


def rate(metric, by, labels=ENGINE):
    legend = " ".join(f"{{{{{label}}}}}" for label in by.split(", "))
    return [(f"sum by ({by}) (rate({metric}{{{labels}}}{RATE}))", legend)]


def value(metric, legend="{{engine}}", labels=ENGINE):
    return [(f"{metric}{{{labels}}}", legend)]


# Dashboard -> rows -> panels (title, unit, [(query, legend)], kind). Kinds: line, stack, stat, table.
BOARDS = {
    "overview": ("SageQuant: overview", [
        ("State", [
            ("Replicas ready", "short", [(f"sum(sage_ready{{{ONE}}})", "ready")], "stat"),
            ("Requests a second", "reqps", [(f"sum(rate(sage_requests_total{{{ENGINE}}}{RATE}))", "requests")], "stat"),
            ("Tokens a second", "short", [(f"sum(rate(sage_generated_tokens_total{{{ENGINE}}}{RATE}))", "tokens")], "stat"),
            ("Waiting requests", "short", [(f"sum(sage_requests_waiting{{{ENGINE}}})", "waiting")], "stat"),
            ("KV in use", "percentunit", [(f"max(sage_kv_used_ratio{{{ENGINE}}})", "used")], "stat"),
            ("Failed calls", "percentunit", [(
                f'(sum(rate(sage_rpc_requests_total{{{ONE}, code=~"INTERNAL|UNKNOWN|DATA_LOSS|UNAVAILABLE"}}{RATE})) or vector(0)) '
                f"/ (sum(rate(sage_rpc_requests_total{{{ONE}}}{RATE})) > 0) or vector(0)", "errors")], "stat")]),
        ("Latency", [
            ("Time to first token", "s", quantiles("sage_time_to_first_token_seconds"), "line"),
            ("Time between tokens", "s", quantiles("sage_inter_token_latency_seconds"), "line"),
            ("Time in the queue", "s", quantiles("sage_queue_seconds"), "line"),
            ("Whole request", "s", quantiles("sage_request_seconds"), "line")]),
        ("Throughput", [
            ("Tokens generated", "short", rate("sage_generated_tokens_total", "engine"), "stack"),
            ("Prompt tokens", "short", rate("sage_prompt_tokens_total", "engine"), "stack"),
            ("Requests that ended", "reqps", rate("sage_requests_total", "engine, finish_reason"), "stack"),
            ("Running and waiting", "short", value("sage_sequences_running", "running {{engine}}")
             + value("sage_requests_waiting", "waiting {{engine}}"), "line")]),
        ("Engine steps", [
            ("Step duration", "s", quantiles("sage_step_seconds"), "line"),
            ("Rows in a step", "short", sizes("sage_step_rows"), "line"),
            ("Sequences in a step", "short", sizes("sage_batch_sequences"), "line"),
            ("Age of the last step", "s", value("sage_engine_step_age_seconds"), "line")]),
        ("What saves steps", [
            ("Prompt tokens found in the prefix cache", "percentunit", [(
                f"sum by (engine) (rate(sage_prefix_cache_hit_tokens_total{{{ENGINE}}}{RATE})) / "
                f"sum by (engine) (rate(sage_prefix_cache_queried_tokens_total{{{ENGINE}}}{RATE}))", "{{engine}}")], "line"),
            ("Guessed tokens that were right", "percentunit", [(
                f"sum by (engine) (rate(sage_draft_accepted_tokens_total{{{ENGINE}}}{RATE})) / "
                f"sum by (engine) (rate(sage_drafted_tokens_total{{{ENGINE}}}{RATE}))", "{{engine}}")], "line")]),
        ("Engines", [
            ("What runs", "short", [(f"sage_engine_info{{{ENGINE}}}", "")], "table"),
            ("Version and threads", "short", [(f"sage_build_info{{{ONE}}} * on (instance) group_left () sage_compute_threads{{{ONE}}}", "")],
             "table")]),
    ]),
    "quantization": ("SageQuant: quantization", [
        ("Operations", [
            ("Operations now", "short", value("sage_operations", "{{kind}} {{state}}", ONE), "stack"),
            ("Progress", "percentunit", value("sage_operation_progress_ratio", "{{kind}}", ONE), "line"),
            ("Operations that ended", "short", rate("sage_operations_finished_total", "kind, state", ONE), "line"),
            ("Duration (mean)", "s", [(f"sum by (kind) (rate(sage_operation_seconds_sum{{{ONE}}}{RATE})) "
                                       f"/ sum by (kind) (rate(sage_operation_seconds_count{{{ONE}}}{RATE}))", "{{kind}}")], "line")]),
        ("Calibration", [
            ("Layers a second", "short", rate("sage_calibration_layer_seconds_count", "method", ONE), "line"),
            ("Layers of finished calibrations", "short", value("sage_calibration_layers_total", "{{method}} {{instance}}", ONE), "line"),
            ("Time of a layer", "s", [(f"histogram_quantile({q}, sum by (method, le) (rate(sage_calibration_layer_seconds_bucket{{{ONE}}}[5m])))",
                                       f"p{round(q * 100)} {{{{method}}}}") for q in (0.5, 0.99)], "line")]),
        ("What quantization gives", [
            ("Weight bytes", "bytes", [(f"sage_engine_weight_bytes{{{ENGINE}}} * on (instance, engine) group_left (quantization) "
                                        f"sage_engine_info{{{ENGINE}}}", "{{engine}} {{quantization}}")], "line"),
            ("Time to load", "s", [(f"sum by (engine) (sage_load_seconds_sum{{{ENGINE}}}) / sum by (engine) "
                                    f"(sage_load_seconds_count{{{ENGINE}}})", "{{engine}}")], "line"),
            ("Quantized activations reused", "percentunit", [(
                f"sum by (engine) (rate(sage_activation_cache_hits_total{{{ENGINE}}}{RATE})) / "
                f"(sum by (engine) (rate(sage_activation_cache_hits_total{{{ENGINE}}}{RATE})) + "
                f"sum by (engine) (rate(sage_activation_cache_misses_total{{{ENGINE}}}{RATE})))", "{{engine}}")], "line")]),
    ]),
    "memory": ("SageQuant: KV and memory", [
        ("KV cache", [
            ("KV pages in use", "percentunit", value("sage_kv_used_ratio"), "line"),
            ("KV pages", "short", value("sage_kv_pages_used", "used {{engine}}") + value("sage_kv_pages_total", "all {{engine}}")
             + value("sage_kv_pages_cached", "cached {{engine}}"), "line"),
            ("Sequences computed again", "short", rate("sage_preemptions_total", "engine"), "line"),
            ("Tokens the cache holds", "short", [(f"sage_kv_pages_total{{{ENGINE}}} * sage_kv_page_tokens{{{ENGINE}}}", "{{engine}}")],
             "line")]),
        ("Memory", [
            ("Weights and KV", "bytes", value("sage_engine_weight_bytes", "weights {{engine}}")
             + value("sage_engine_kv_bytes", "KV {{engine}}"), "stack"),
            ("Process", "bytes", value("sage_process_resident_memory_bytes", "resident {{instance}}", ONE)
             + value("sage_memory_limit_bytes", "limit {{instance}}", ONE), "line"),
            ("Virtual memory", "bytes", value("sage_process_virtual_memory_bytes", "{{instance}}", ONE), "line")]),
        ("Machine", [
            ("CPUs in use", "short", rate("sage_process_cpu_seconds_total", "instance", ONE)
             + value("sage_cpu_limit", "limit {{instance}}", ONE), "line"),
            ("Disk of the data folder", "bytes", value("sage_data_free_bytes", "free {{instance}}", ONE)
             + value("sage_data_size_bytes", "size {{instance}}", ONE), "line"),
            ("Open files", "short", value("sage_process_open_files", "{{instance}}", ONE), "line")]),
    ]),
    "errors": ("SageQuant: calls and errors", [
        ("Calls", [
            ("Calls by code", "reqps", rate("sage_rpc_requests_total", "code", ONE), "stack"),
            ("Calls by method", "reqps", rate("sage_rpc_requests_total", "interface, method", ONE), "stack"),
            ("Connections", "short", value("sage_grpc_connections", "gRPC {{instance}}", ONE)
             + value("sage_http_connections", "HTTP {{instance}}", ONE), "line"),
            ("Calls in progress", "short", value("sage_rpc_in_flight", "{{interface}} {{instance}}", ONE), "line"),
            ("Slowest hundredth by method", "s", [(f"histogram_quantile(0.99, sum by (method, le) "
                                                   f"(rate(sage_rpc_request_seconds_bucket{{{ONE}, {WORKING}}}{RATE})))", "{{method}}")],
             "line")]),
        ("Refusals", [
            ("Refused by reason", "reqps", rate("sage_rejections_total", "reason", ONE), "stack"),
            ("Engine states", "short", [(f"sage_engine_state{{{ENGINE}}} == 1", "{{engine}} {{state}}")], "stack"),
            ("Waiting tokens", "short", value("sage_tokens_waiting"), "line")]),
        ("Door", [
            ("Certificates: time left", "s", [(f"sage_tls_certificate_end_seconds{{{ONE}}} - time()", "{{instance}}"),
                                              (f"sage_tls_client_ca_end_seconds{{{ONE}}} - time()", "authority {{instance}}")], "line"),
            ("Reloads", "short", rate("sage_reloads_total", "what, result", ONE)
             + value("sage_reload_failing", "failing {{what}} {{instance}}", ONE), "line"),
            ("Spans", "short", rate("sage_spans_total", "result", ONE), "line"),
            ("Uptime", "s", [(f"time() - sage_process_start_time_seconds{{{ONE}}}", "{{instance}}")], "line")]),
    ]),
}


def metrics_of(query):
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in re.findall(r"\bsage_\w+", query)}


def panel(title, unit, queries, kind, known, width):
    builder = {"stat": stat, "table": table}.get(kind, timeseries).Panel().title(title).datasource(SOURCE).unit(unit)
    used = sorted(set().union(*(metrics_of(query) for query, _ in queries)))
    missing = [name for name in used if name not in known]
    assert not missing, f"{title}: not in the catalogue of metrics: {missing}"
    builder.description("\n".join(f"{name}: {known[name]}" for name in used))
    for index, (query, legend) in enumerate(queries):
        target = prometheus.Dataquery().expr(query).ref_id("ABCDEFGH"[index]).datasource(SOURCE)
        if kind == "table":
            target.format(PromQueryFormat.TABLE).instant()
        else:
            target.legend_format(legend)
        builder.with_target(target)
    if kind in ("line", "stack"):
        builder.fill_opacity(20 if kind == "stack" else 0).line_width(1).min(0)
        builder.legend(common.VizLegendOptions().display_mode(LegendDisplayMode.LIST).placement(LegendPlacement.BOTTOM).show_legend(True))
        if kind == "stack":
            builder.stacking(common.StackingConfig().mode("normal"))
    if unit == "percentunit" and kind == "stat":
        levels = (0.001, 0.01) if title == "Failed calls" else (0.8, 0.95)
        builder.thresholds(dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(
            [Threshold(color="green", value=None), Threshold(color="orange", value=levels[0]), Threshold(color="red", value=levels[1])]))
    if kind == "stat":
        builder.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    return builder.span({"stat": 4, "table": 24}.get(kind, width)).height({"stat": 4, "table": 6}.get(kind, 8))


def build():
    known = catalogue()
    out = {}
    for name, (title, rows) in BOARDS.items():
        board = (dashboard.Dashboard(title).uid(f"sagequant-{name}").tags(["sagequant"]).refresh("15s").time("now-1h", "now").readonly()
                 .timezone("browser").tooltip(DashboardCursorSync.CROSSHAIR)
                 .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus")))
        for variable, query in (("instance", "label_values(sage_build_info, instance)"),
                                ("engine", 'label_values(sage_engine_info{instance=~"$instance"}, engine)')):
            board.with_variable(dashboard.QueryVariable(variable).label(variable.capitalize()).query(query).datasource(SOURCE).multi(True)
                                .include_all(True).all_value(".*").refresh(VariableRefresh.ON_TIME_RANGE_CHANGED))
        for row, panels in rows:
            board.with_row(dashboard.Row(row))
            # Two panels side by side; where their number is odd, the last three.
            threes = 3 if len(panels) % 2 and len(panels) > 1 else 0
            for index, arguments in enumerate(panels):
                board.with_panel(panel(*arguments, known, 8 if index >= len(panels) - threes else 12))
        out[name] = JSONEncoder(sort_keys=True, indent=1).encode(board.build()) + "\n"
    return out
