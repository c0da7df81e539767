{{/* The two services, as containers and as pods: everything that gateways and brokers have in common. */}}

{{- define "runstream.port" -}}{{ ternary 8283 8284 (eq . "gateway") }}{{- end -}}

{{- define "runstream.metricsPort" -}}{{ ternary 9283 9284 (eq . "gateway") }}{{- end -}}

{{/* What Pod Security `restricted` asks of a container, and a root that nobody writes to. */}}
{{- define "runstream.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
capabilities:
  drop: [ALL]
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "runstream.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/* One container: (list $ "gateway" "prefix-"). The prefix tells its ports and volumes from others' in one pod. */}}
{{- define "runstream.container" -}}
{{- $ := index . 0 -}}
{{- $name := index . 1 -}}
{{- $prefix := index . 2 -}}
{{- $role := index $.Values $name -}}
{{- $http := ternary "http" (printf "%shttp" $prefix) (empty $prefix) -}}
{{- $metrics := ternary "metrics" (printf "%smetrics" $prefix) (empty $prefix) -}}
name: {{ ternary $name (printf "runstream-%s" $name) (empty $prefix) }}
image: {{ include "runstream.image" $ }}
imagePullPolicy: {{ $.Values.image.pullPolicy }}
args:
  - {{ $name }}
  {{- range $role.extraArgs }}
  - {{ tpl . $ | quote }}
  {{- end }}
env:
  {{- include "runstream.env" (list $ $name) | nindent 2 }}
envFrom:
  {{- include "runstream.envFrom" (list $ $name) | nindent 2 }}
ports:
  - name: {{ $http }}
    containerPort: {{ include "runstream.port" $name }}
    protocol: TCP
  - name: {{ $metrics }}
    containerPort: {{ include "runstream.metricsPort" $name }}
    protocol: TCP
{{- /* Alive is who answers at all; nothing of NATS's, whose outage a restart would not end. All are asked where clients
       are not: a port that they have filled answers no probe, and a restart would cut all who are served there. */}}
startupProbe:
  httpGet:
    path: /livez
    port: {{ $metrics }}
  {{- toYaml $role.startupProbe | nindent 2 }}
livenessProbe:
  httpGet:
    path: /livez
    port: {{ $metrics }}
  {{- toYaml $role.livenessProbe | nindent 2 }}
readinessProbe:
  httpGet:
    path: /readyz
    port: {{ $metrics }}
  {{- toYaml $role.readinessProbe | nindent 2 }}
{{- if gt (int $role.preStopSeconds) 0 }}
lifecycle:
  preStop:
    sleep:
      seconds: {{ int $role.preStopSeconds }}
{{- end }}
{{- with $role.resources }}
resources:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- include "runstream.containerSecurity" $ | nindent 2 }}
volumeMounts:
  {{- include "runstream.volumeMounts" (list $ $name $prefix) | nindent 2 }}
{{- end -}}

{{- define "runstream.spread" -}}
{{- $ := index . 0 -}}
{{- $name := index . 1 -}}
{{- $role := index $.Values $name -}}
{{- if $role.topologySpreadConstraints -}}
{{ tpl (toYaml $role.topologySpreadConstraints) $ }}
{{- else if ne $role.topologySpread "none" -}}
{{- range list "topology.kubernetes.io/zone" "kubernetes.io/hostname" -}}
- maxSkew: 1
  topologyKey: {{ . }}
  whenUnsatisfiable: {{ $role.topologySpread }}
  labelSelector:
    matchLabels:
      {{- include "runstream.selectorLabels" (list $ $name) | nindent 6 }}
  matchLabelKeys: [pod-template-hash]
{{ end -}}
{{- end -}}
{{- end -}}

{{/* How a Service, a PodMonitor or a NetworkPolicy finds a role's pods: the platform's own where it is a sidecar. */}}
{{- define "runstream.podLabels" -}}
{{- $ := index . 0 -}}
{{- if $.Values.sidecar.enabled -}}
{{- if not $.Values.sidecar.selector -}}
{{- fail "sidecar.selector: give the labels of the pods that have runstream's containers" -}}
{{- end -}}
{{ toYaml $.Values.sidecar.selector }}
{{- else -}}
{{ include "runstream.selectorLabels" . }}
{{- end -}}
{{- end -}}

{{/* The pods' port of a role by name, which in a shared pod has a prefix: (list $ "gateway" "http"). */}}
{{- define "runstream.portName" -}}
{{- $prefix := ternary "gw-" "bk-" (eq (index . 1) "gateway") -}}
{{- ternary (printf "%s%s" $prefix (index . 2)) (index . 2) (index . 0).Values.sidecar.enabled -}}
{{- end -}}

{{- define "runstream.deployment" -}}
{{- $ := index . 0 -}}
{{- $name := index . 1 -}}
{{- $role := index $.Values $name -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  {{- include "runstream.metadata" (list $ $name (printf "%s-%s" (include "runstream.fullname" $) $name) $role.annotations) | nindent 2 }}
spec:
  {{- if not (and (eq $name "gateway") (include "runstream.autoscaled" $)) }}
  replicas: {{ $role.replicas }}
  {{- end }}
  revisionHistoryLimit: 3
  {{- /* A pod that stops comes late to the end of its grace period; a rollout that waits for it has not failed. */}}
  progressDeadlineSeconds: {{ add 600 (include "runstream.graceSeconds" (list $ $name) | int) }}
  selector:
    matchLabels:
      {{- include "runstream.selectorLabels" (list $ $name) | nindent 6 }}
  strategy:
    {{- toYaml $role.strategy | nindent 4 }}
  template:
    metadata:
      labels:
        {{- include "runstream.labels" (list $ $name) | nindent 8 }}
        {{- with $role.podLabels }}
        {{- tpl (toYaml .) $ | nindent 8 }}
        {{- end }}
      annotations:
        checksum/config: {{ include "runstream.settings" (list $ $name) | sha256sum }}
        {{- with merge (dict) $role.podAnnotations $.Values.commonAnnotations }}
        {{- tpl (toYaml .) $ | nindent 8 }}
        {{- end }}
    spec:
      serviceAccountName: {{ include "runstream.serviceAccountName" $ }}
      automountServiceAccountToken: false
      enableServiceLinks: false
      {{- with include "runstream.imagePullSecrets" $ }}
      {{- . | trim | nindent 6 }}
      {{- end }}
      terminationGracePeriodSeconds: {{ include "runstream.graceSeconds" (list $ $name) }}
      securityContext:
        {{- include "runstream.podSecurity" $ | nindent 8 }}
      {{- with $role.initContainers }}
      initContainers:
        {{- tpl (toYaml .) $ | nindent 8 }}
      {{- end }}
      containers:
        - {{ include "runstream.container" (list $ $name "") | nindent 10 | trim }}
        {{- with $role.sidecars }}
        {{- tpl (toYaml .) $ | nindent 8 }}
        {{- end }}
      volumes:
        {{- include "runstream.volumes" (list $ $name "") | nindent 8 }}
      {{- with include "runstream.spread" (list $ $name) }}
      topologySpreadConstraints:
        {{- . | trim | nindent 8 }}
      {{- end }}
      {{- with $role.nodeSelector }}
      nodeSelector:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $role.affinity }}
      affinity:
        {{- tpl (toYaml .) $ | nindent 8 }}
      {{- end }}
      {{- with $role.tolerations }}
      tolerations:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $role.priorityClassName }}
      priorityClassName: {{ . }}
      {{- end }}
      {{- with $role.runtimeClassName }}
      runtimeClassName: {{ . }}
      {{- end }}
{{- end -}}
