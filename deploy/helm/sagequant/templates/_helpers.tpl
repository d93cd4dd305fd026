{{- define "sagequant.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}{{ .Release.Name | trunc 52 | trimSuffix "-" }}
{{- else -}}{{ printf "%s-%s" .Release.Name $name | trunc 52 | trimSuffix "-" }}{{- end -}}
{{- end -}}
{{- end -}}

{{- define "sagequant.selector" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "sagequant.labels" -}}
{{ include "sagequant.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "sagequant.image" -}}
{{- $tag := default (printf "%s-%s" .Chart.AppVersion (ternary "cuda" "cpu" .Values.gpu.enabled)) .Values.image.tag -}}
{{ .Values.image.repository }}:{{ $tag }}
{{- end -}}

{{- define "sagequant.tokenSecret" -}}
{{ default (printf "%s-tokens" (include "sagequant.fullname" .)) .Values.auth.existingSecret }}
{{- end -}}

{{- /* The pod may live this long after it is told to go: the pause before SIGTERM, the drain, and the daemon's own end. */ -}}
{{- define "sagequant.gracePeriod" -}}
{{ add .Values.preStopSleepSeconds .Values.config.drainDelaySeconds .Values.config.drainTimeoutSeconds 15 }}
{{- end -}}

{{- define "sagequant.scheme" -}}
{{ ternary "HTTPS" "HTTP" .Values.tls.enabled }}
{{- end -}}

{{- /* The port of config.otlpEndpoint; the daemon's default where it names none. */ -}}
{{- define "sagequant.otlpPort" -}}
{{ .Values.config.otlpEndpoint | trimPrefix "http://" | regexFind "^[^/]*" | regexFind ":[0-9]+$" | trimPrefix ":" | default "4318" }}
{{- end -}}

{{- /* The daemon's configuration file. */ -}}
{{- define "sagequant.config" -}}
data_dir: /data
model_root: [/models]
grpc_listen: "0.0.0.0:{{ .Values.service.grpcPort }}"
http_listen: "0.0.0.0:{{ .Values.service.httpPort }}"
token_file: /etc/sagequant/secrets/tokens
{{- if .Values.tls.enabled }}
tls_cert: /etc/sagequant/tls/tls.crt
tls_key: /etc/sagequant/tls/tls.key
http_tls: true
{{- if .Values.tls.clientCaSecret }}
tls_client_ca: /etc/sagequant/client-ca/ca.crt
{{- end }}
{{- end }}
threads: {{ .Values.config.threads }}
log_format: json
log_level: {{ .Values.config.logLevel }}
open_metrics: {{ .Values.config.openMetrics }}
drain_timeout: {{ .Values.config.drainTimeoutSeconds }}
drain_delay: {{ .Values.config.drainDelaySeconds }}
watchdog: {{ .Values.config.watchdogSeconds }}
max_streams: {{ .Values.config.maxStreams }}
max_connections: {{ .Values.config.maxConnections }}
max_http_connections: {{ .Values.config.maxHttpConnections }}
http_threads: {{ .Values.config.httpThreads }}
operation_workers: {{ .Values.config.operationWorkers }}
{{- if .Values.config.otlpEndpoint }}
otlp_endpoint: {{ .Values.config.otlpEndpoint }}
{{- end }}
{{- if .Values.engines }}
engines_file: /etc/sagequant/config/engines.json
{{- end }}
{{- with .Values.config.extra }}
{{ toYaml . }}
{{- end }}
{{- end -}}
