{{/* The names, labels and images that every template shares. */}}

{{- define "runstream.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "runstream.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "runstream.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "runstream.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* What a selector has, and nothing else: (list $ "gateway"). It never changes, as selectors cannot. */}}
{{- define "runstream.selectorLabels" -}}
{{- $ := index . 0 -}}
app.kubernetes.io/name: {{ include "runstream.name" $ }}
app.kubernetes.io/instance: {{ $.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{- define "runstream.labels" -}}
{{- $ := index . 0 -}}
{{ include "runstream.selectorLabels" . }}
app.kubernetes.io/version: {{ $.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: runstream
app.kubernetes.io/managed-by: {{ $.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $.Chart.Name $.Chart.Version | replace "+" "_" }}
{{- with $.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* The metadata of an object: (list $ "gateway" "runstream-gateway" $annotations), and $labels if it has any of its own. */}}
{{- define "runstream.metadata" -}}
{{- $ := index . 0 -}}
{{- $annotations := merge (dict) (default dict (index . 3)) $.Values.commonAnnotations -}}
name: {{ index . 2 }}
namespace: {{ $.Release.Namespace }}
labels:
  {{- include "runstream.labels" (list $ (index . 1)) | nindent 2 }}
  {{- if gt (len .) 4 }}
  {{- with index . 4 }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
  {{- end }}
{{- with $annotations }}
annotations:
  {{- tpl (toYaml .) $ | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "runstream.image" -}}
{{- $image := .Values.image -}}
{{- $registry := default $image.registry (default dict .Values.global).imageRegistry -}}
{{- with $registry }}{{ . }}/{{ end -}}
{{ $image.repository }}
{{- if $image.digest }}@{{ $image.digest }}{{ else }}:{{ default .Chart.AppVersion $image.tag }}{{ end -}}
{{- end -}}

{{- define "runstream.imagePullSecrets" -}}
{{- with concat (default list (default dict .Values.global).imagePullSecrets) .Values.imagePullSecrets | uniq }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end -}}

{{- define "runstream.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "runstream.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* Whether an autoscaler owns the gateways' number of pods. */}}
{{- define "runstream.autoscaled" -}}
{{- if or .Values.gateway.autoscaling.enabled .Values.gateway.keda.enabled }}yes{{ end -}}
{{- end -}}

{{/* The fewest pods that a role has: (list $ "gateway"). */}}
{{- define "runstream.fewest" -}}
{{- $ := index . 0 -}}
{{- $role := index . 1 -}}
{{- $gateway := $.Values.gateway -}}
{{- if and (eq $role "gateway") $gateway.autoscaling.enabled -}}
{{- $gateway.autoscaling.minReplicas -}}
{{- else if and (eq $role "gateway") $gateway.keda.enabled -}}
{{- $gateway.keda.minReplicas -}}
{{- else -}}
{{- (index $.Values $role).replicas -}}
{{- end -}}
{{- end -}}

{{/* The seconds that Kubernetes leaves a role's pod: what it needs, or the longer time that was asked for. */}}
{{- define "runstream.graceSeconds" -}}
{{- $role := index (index . 0).Values (index . 1) -}}
{{- $needed := add $role.preStopSeconds $role.drainSeconds 10 | int -}}
{{- $asked := int $role.terminationGracePeriodSeconds -}}
{{- if and (gt $asked 0) (lt $asked $needed) -}}
{{- fail (printf "%s.terminationGracePeriodSeconds is %d, and a pod needs preStopSeconds (%d) + drainSeconds (%d) + 10 = %d: raise it, or leave it at 0, which computes it" (index . 1) $asked (int $role.preStopSeconds) (int $role.drainSeconds) $needed) -}}
{{- end -}}
{{- max $asked $needed -}}
{{- end -}}

{{/* What every pod that has a policy may reach: names, and NATS. */}}
{{- define "runstream.egressToNames" -}}
# Names.
- ports:
    - {protocol: UDP, port: 53}
    - {protocol: TCP, port: 53}
  to:
    {{- tpl (toYaml .Values.networkPolicy.dnsTo) . | nindent 4 }}
{{- end -}}

{{- define "runstream.egress" -}}
{{ include "runstream.egressToNames" . }}
# NATS.
- ports:
    {{- range .Values.networkPolicy.natsPorts }}
    - protocol: TCP
      port: {{ . }}
    {{- end }}
  {{- with .Values.networkPolicy.natsTo }}
  to:
    {{- tpl (toYaml .) $ | nindent 4 }}
  {{- end }}
{{- end -}}
