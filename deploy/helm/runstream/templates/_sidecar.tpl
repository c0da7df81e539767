{{/* runstream's containers in a pod of somebody else's chart, which has this one as a dependency:

       containers:
         {{- include "runstream.sidecar.containers" .Subcharts.runstream | nindent 8 }}
       volumes:
         {{- include "runstream.sidecar.volumes" .Subcharts.runstream | nindent 8 }}
       terminationGracePeriodSeconds: {{ include "runstream.sidecar.graceSeconds" .Subcharts.runstream }}

     and of its own container, which has to outlive what is being said:

       lifecycle: {preStop: {sleep: {seconds: {{ include "runstream.sidecar.preStopSeconds" .Subcharts.runstream }}}}}
*/}}

{{- define "runstream.sidecar.containers" -}}
{{- if .Values.gateway.enabled }}
- {{ include "runstream.container" (list . "gateway" "gw-") | nindent 2 | trim }}
{{- end }}
{{- if .Values.broker.enabled }}
- {{ include "runstream.container" (list . "broker" "bk-") | nindent 2 | trim }}
{{- end }}
{{- end -}}

{{- define "runstream.sidecar.volumes" -}}
{{- if .Values.gateway.enabled }}
{{ include "runstream.volumes" (list . "gateway" "gw-") }}
{{- end }}
{{- if .Values.broker.enabled }}
{{ include "runstream.volumes" (list . "broker" "bk-") }}
{{- end }}
{{- end -}}

{{/* A change of settings is a change of the platform's pods. */}}
{{- define "runstream.sidecar.checksum" -}}
{{- printf "%s%s" (include "runstream.settings" (list . "gateway")) (include "runstream.settings" (list . "broker")) | sha256sum -}}
{{- end -}}

{{- define "runstream.sidecar.graceSeconds" -}}
{{- max (include "runstream.graceSeconds" (list . "gateway") | int) (include "runstream.graceSeconds" (list . "broker") | int) -}}
{{- end -}}

{{/* How long an agent in the pod has to be there after it was told to stop: until the broker's runs had their time. */}}
{{- define "runstream.sidecar.preStopSeconds" -}}
{{- add .Values.broker.preStopSeconds .Values.broker.drainSeconds -}}
{{- end -}}
