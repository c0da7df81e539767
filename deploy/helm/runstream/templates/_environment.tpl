{{/* What a process is told: settings, files, and where it finds NATS. */}}

{{/* Settings that the chart derives from other values; said twice, they could contradict each other. */}}
{{- define "runstream.owned" -}}
RUNSTREAM_HOST: say listenAddress
RUNSTREAM_PORT: pods' ports are fixed, and gateway.service.port is what clients see
RUNSTREAM_BROKER_PORT: pods' ports are fixed, and broker.service.port is what writers see
RUNSTREAM_METRICS_PORT: pods' ports are fixed
RUNSTREAM_NATS_URL: say nats.url, or nats.existingSecret
RUNSTREAM_NATS_CREDENTIALS: say nats.credentials.existingSecret
RUNSTREAM_NATS_NKEY: say nats.nkeys.existingSecret
RUNSTREAM_NATS_CA: say nats.tls.existingSecret
RUNSTREAM_NATS_CERTIFICATE: say nats.tls.existingSecret
RUNSTREAM_NATS_CERTIFICATE_KEY: say nats.tls.existingSecret
RUNSTREAM_NATS_SERVER_NAME: say nats.tls.serverName
RUNSTREAM_DRAIN_SECONDS: say gateway.drainSeconds or broker.drainSeconds, from which the grace period is computed
RUNSTREAM_AGENT: say broker.agent
RUNSTREAM_UPSTREAM: say gateway.upstream
RUNSTREAM_BACKGROUND: say gateway.background
RUNSTREAM_AUTH: say auth.mode
RUNSTREAM_INSECURE: say auth.insecure
RUNSTREAM_AUTH_KEYS_FILE: say auth.existingSecret
RUNSTREAM_AUTH_SECRET_FILE: say auth.existingSecret and auth.secretKey
RUNSTREAM_AUTH_JWKS: say auth.jwks
RUNSTREAM_AUTH_ISSUER: say auth.issuer
RUNSTREAM_AUTH_AUDIENCE: say auth.audience
RUNSTREAM_AUTH_TENANT_CLAIM: say auth.tenantClaim
RUNSTREAM_LOG_JSON: pods log JSON
RUNSTREAM_LOG_LEVEL: say logLevel
{{- end -}}

{{/* The settings of a role, as the ConfigMap has them: (list $ "gateway"). */}}
{{- define "runstream.settings" -}}
{{- $ := index . 0 -}}
{{- $name := index . 1 -}}
{{- $role := default (dict "config" dict) (index $.Values $name) -}}
{{- $owned := fromYaml (include "runstream.owned" $) -}}
{{- $config := merge (dict) (default dict $role.config) $.Values.config -}}
{{- range $setting, $value := $config -}}
{{- with index $owned $setting -}}
{{- fail (printf "config: %s is the chart's to set; %s" $setting .) -}}
{{- end }}
{{- /* A float64 of a whole number would be written as 1e+06. */}}
{{ $setting }}: {{ ternary (printf "%v" (int64 $value)) (tpl (toString $value) $) (and (kindIs "float64" $value) (eq (float64 (int64 $value)) (float64 $value))) | quote }}
{{- end }}
{{- end -}}

{{/* Who a role is in NATS, and whom it lets in: a map of settings to {secret, key}. (list $ "gateway") */}}
{{- define "runstream.secretFiles" -}}
{{- $ := index . 0 -}}
{{- $name := index . 1 -}}
{{- $files := dict -}}
{{- $nats := $.Values.nats -}}
{{- if and $nats.nkeys.existingSecret $nats.credentials.existingSecret -}}
{{- fail "nats.nkeys and nats.credentials both have a Secret, and a service is one user: name one" -}}
{{- end -}}
{{- range $setting, $from := dict "RUNSTREAM_NATS_NKEY" $nats.nkeys "RUNSTREAM_NATS_CREDENTIALS" $nats.credentials -}}
{{- if $from.existingSecret -}}
{{- $_ := set $files $setting (dict "secret" $from.existingSecret "key" (index $from (printf "%sKey" $name))) -}}
{{- end -}}
{{- end -}}
{{- with $.Values.nats.tls -}}
{{- if .existingSecret -}}
{{- $_ := set $files "RUNSTREAM_NATS_CA" (dict "secret" .existingSecret "key" .caKey) -}}
{{- if .certificateKey -}}
{{- $_ := set $files "RUNSTREAM_NATS_CERTIFICATE" (dict "secret" .existingSecret "key" .certificateKey) -}}
{{- $_ := set $files "RUNSTREAM_NATS_CERTIFICATE_KEY" (dict "secret" .existingSecret "key" .privateKey) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if ne $name "provision" -}}
{{- $auth := $.Values.auth -}}
{{- if eq $auth.mode "static" -}}
{{- if not $auth.existingSecret -}}
{{- fail "auth.mode is static: name the Secret that has the file of keys in auth.existingSecret" -}}
{{- end -}}
{{- $_ := set $files "RUNSTREAM_AUTH_KEYS_FILE" (dict "secret" $auth.existingSecret "key" $auth.keysKey) -}}
{{- else if eq $auth.mode "jwt" -}}
{{- if $auth.secretKey -}}
{{- if not $auth.existingSecret -}}
{{- fail "auth.secretKey is a key of a Secret: name it in auth.existingSecret" -}}
{{- end -}}
{{- $_ := set $files "RUNSTREAM_AUTH_SECRET_FILE" (dict "secret" $auth.existingSecret "key" $auth.secretKey) -}}
{{- else if not $auth.jwks -}}
{{- fail "auth.mode is jwt: say how tokens are checked, by auth.jwks, the URL of public keys, or auth.secretKey" -}}
{{- end -}}
{{- if not (and $auth.issuer $auth.audience) -}}
{{- fail "auth.mode is jwt: say whose tokens are taken, and for whom, by auth.issuer and auth.audience" -}}
{{- end -}}
{{- end -}}
{{- $role := index $.Values $name -}}
{{- $files = merge (dict) $role.secretFiles $.Values.secretFiles $files -}}
{{- end -}}
{{- if $files -}}{{ toYaml $files }}{{- else -}}{}{{- end -}}
{{- end -}}

{{/* The variables of a role's container: (list $ "gateway"). */}}
{{- define "runstream.env" -}}
{{- $ := index . 0 -}}
{{- $name := index . 1 -}}
{{- $nats := $.Values.nats -}}
- name: RUNSTREAM_NATS_URL
{{- if $nats.existingSecret }}
  valueFrom:
    secretKeyRef:
      name: {{ tpl $nats.existingSecret $ }}
      key: {{ $nats.urlKey }}
{{- else }}
  value: {{ required "nats.url: say where NATS is, such as nats://nats:4222, or name a Secret that says so in nats.existingSecret" (tpl $nats.url $) | quote }}
{{- end }}
{{- with $nats.tls.serverName }}
- name: RUNSTREAM_NATS_SERVER_NAME
  value: {{ . | quote }}
{{- end }}
- name: RUNSTREAM_LOG_LEVEL
  value: {{ $.Values.logLevel }}
- name: RUNSTREAM_LOG_JSON
  value: "true"
{{- if ne $name "provision" }}
{{- $role := index $.Values $name }}
- name: RUNSTREAM_HOST
  value: {{ $.Values.listenAddress | quote }}
{{- /* The default, and said: a pod with service links, as a sidecar's may be, hears of a Service runstream-broker in
       RUNSTREAM_BROKER_PORT, as tcp://… */}}
- name: {{ ternary "RUNSTREAM_PORT" "RUNSTREAM_BROKER_PORT" (eq $name "gateway") }}
  value: {{ include "runstream.port" $name | quote }}
- name: RUNSTREAM_METRICS_PORT
  value: {{ include "runstream.metricsPort" $name | quote }}
- name: RUNSTREAM_DRAIN_SECONDS
  value: {{ $role.drainSeconds | quote }}
{{- $auth := $.Values.auth }}
{{- if and (eq $auth.mode "none") (not $auth.insecure) }}
{{- fail "auth.mode is none, and whoever reaches a gateway could read and end every run: set auth.mode to static or jwt, or auth.insecure to true" }}
{{- end }}
- name: RUNSTREAM_AUTH
  value: {{ $auth.mode }}
{{- if eq $auth.mode "none" }}
- name: RUNSTREAM_INSECURE
  value: "true"
{{- else if eq $auth.mode "jwt" }}
{{- range $setting, $value := dict "RUNSTREAM_AUTH_JWKS" $auth.jwks "RUNSTREAM_AUTH_ISSUER" $auth.issuer "RUNSTREAM_AUTH_AUDIENCE" $auth.audience "RUNSTREAM_AUTH_TENANT_CLAIM" $auth.tenantClaim }}
{{- if $value }}
- name: {{ $setting }}
  value: {{ $value | quote }}
{{- end }}
{{- end }}
{{- end }}
{{- if and (eq $name "broker") $role.agent }}
- name: RUNSTREAM_AGENT
  value: {{ tpl $role.agent $ | quote }}
{{- end }}
{{- if eq $name "gateway" }}
- name: RUNSTREAM_BACKGROUND
  value: {{ $role.background }}
{{- with $role.upstream }}
- name: RUNSTREAM_UPSTREAM
  value: {{ tpl . $ | quote }}
{{- end }}
{{- end }}
{{- end }}
{{- range $setting, $from := fromYaml (include "runstream.secretFiles" .) }}
- name: {{ $setting }}
  value: /etc/runstream/secrets/{{ $setting | trimPrefix "RUNSTREAM_" | lower }}/{{ $from.key }}
{{- end }}
{{- if ne $name "provision" }}
{{- with concat $.Values.extraEnv (index $.Values $name).extraEnv }}
{{ tpl (toYaml .) $ }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "runstream.envFrom" -}}
{{- $ := index . 0 -}}
{{- $name := index . 1 -}}
- configMapRef:
    name: {{ include "runstream.fullname" $ }}-{{ $name }}
{{- if ne $name "provision" }}
{{- with concat $.Values.extraEnvFrom (index $.Values $name).extraEnvFrom }}
{{ tpl (toYaml .) $ }}
{{- end }}
{{- end }}
{{- end -}}

{{/* One directory for each file, and no subPath: a Secret that is renewed reaches the process that reads it anew. */}}
{{- define "runstream.volumeMounts" -}}
{{- $ := index . 0 -}}
{{- $name := index . 1 -}}
{{- $prefix := index . 2 -}}
- name: {{ $prefix }}tmp
  mountPath: /tmp
{{- range $setting, $from := fromYaml (include "runstream.secretFiles" (list $ $name)) }}
- name: {{ include "runstream.volumeName" (list $prefix $setting) }}
  mountPath: /etc/runstream/secrets/{{ $setting | trimPrefix "RUNSTREAM_" | lower }}
  readOnly: true
{{- end }}
{{- if ne $name "provision" }}
{{- with (index $.Values $name).extraVolumeMounts }}
{{ tpl (toYaml .) $ }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "runstream.volumes" -}}
{{- $ := index . 0 -}}
{{- $name := index . 1 -}}
{{- $prefix := index . 2 -}}
- name: {{ $prefix }}tmp
  emptyDir:
    sizeLimit: 64Mi
{{- range $setting, $from := fromYaml (include "runstream.secretFiles" (list $ $name)) }}
- name: {{ include "runstream.volumeName" (list $prefix $setting) }}
  secret:
    secretName: {{ tpl $from.secret $ }}
    items:
      - key: {{ $from.key }}
        path: {{ $from.key }}
{{- end }}
{{- if ne $name "provision" }}
{{- with (index $.Values $name).extraVolumes }}
{{ tpl (toYaml .) $ }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "runstream.volumeName" -}}
{{- printf "%s%s" (index . 0) (index . 1 | trimPrefix "RUNSTREAM_" | lower | replace "_" "-") | trunc 63 | trimSuffix "-" -}}
{{- end -}}
