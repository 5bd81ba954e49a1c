{{- define "denll.name" -}}
{{ .Release.Name | trunc 40 | trimSuffix "-" }}
{{- end }}

{{/* Labels of a component: a list of the root and its name. */}}
{{- define "denll.selector" -}}
app.kubernetes.io/name: denll
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- define "denll.labels" -}}
{{ include "denll.selector" . }}
app.kubernetes.io/version: {{ (index . 0).Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ (index . 0).Release.Service }}
helm.sh/chart: {{ (index . 0).Chart.Name }}-{{ (index . 0).Chart.Version }}
{{- end }}

{{- define "denll.image" -}}
{{- $root := index . 0 -}}
{{ $root.Values.image.prefix }}{{ index . 1 }}:{{ $root.Values.image.tag | default $root.Chart.AppVersion }}
{{- end }}

{{/* What every pod has: the user of the images, no token of the cluster, an init that reaps what children leave. */}}
{{- define "denll.pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false
shareProcessNamespace: true
{{- with .Values.image.pullSecrets }}
imagePullSecrets: {{ toYaml . | nindent 2 }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: { type: RuntimeDefault }
{{- end }}

{{- define "denll.hardened" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: { drop: [ALL] }
{{- end }}

{{/* A variable from the Secret: a list of the root, the variable and the key. */}}
{{- define "denll.secret" -}}
- name: {{ index . 1 }}
  valueFrom: { secretKeyRef: { name: {{ (index . 0).Values.secret }}, key: {{ index . 2 }} } }
{{- end }}

{{/* Variables of processes that use the database; with `files` also the object store, with `settings` also Redis. */}}
{{- define "denll.rows" -}}
- { name: DENLL_DATA_DIR, value: /data }
{{ include "denll.secret" (list . "DENLL_DATABASE_URL" "database-url") }}
{{- range $name, $value := .Values.settings }}
- { name: {{ $name }}, value: {{ $value | quote }} }
{{- end }}
{{- end }}
{{- define "denll.files" -}}
{{ include "denll.rows" . }}
{{- include "denll.objectStore" . }}
{{- end }}
{{- define "denll.settings" -}}
{{ include "denll.files" . }}
{{ include "denll.secret" (list . "DENLL_REDIS_URL" "redis-url") }}
{{- end }}

{{/* Where files are published, for every process but the migration. */}}
{{- define "denll.objectStore" -}}
{{- with .Values.objectStore }}{{ if .url }}
- { name: DENLL_OBJECT_STORE, value: {{ .url | quote }} }
{{- with .endpoint }}
- { name: DENLL_OBJECT_STORE_ENDPOINT, value: {{ . | quote }} }
{{- end }}
{{- with .region }}
- { name: DENLL_OBJECT_STORE_REGION, value: {{ . | quote }} }
{{- end }}
{{- if .key }}
- { name: DENLL_OBJECT_STORE_KEY, value: {{ .key | quote }} }
{{ include "denll.secret" (list $ "DENLL_OBJECT_STORE_SECRET" "object-store-secret") }}
{{- end }}
{{- end }}{{ end }}
{{- end }}

{{/* The devices of so many GPUs. */}}
{{- define "denll.devices" -}}
{{- $names := list -}}
{{- range $number := until (int .) }}{{ $names = append $names (printf "cuda:%d" $number) }}{{ end -}}
{{ $names | join "," | default "cpu" }}
{{- end }}

{{/* Resources with GPUs: a list of the resources, the number and the name of the resource. */}}
{{- define "denll.resources" -}}
{{- $resources := deepCopy (index . 0) -}}
{{- if int (index . 1) }}{{ $_ := set (index $resources "limits") (index . 2) (int (index . 1)) }}{{ end -}}
{{ toYaml $resources }}
{{- end }}

{{- define "denll.mounts" -}}
- { name: data, mountPath: /data }
- { name: tmp, mountPath: /tmp }
{{- end }}
{{- define "denll.volumes" -}}
{{- if .Values.objectStore.url }}
- { name: data, emptyDir: { sizeLimit: {{ .Values.objectStore.folderSize }} } }
{{- else }}
- name: data
  persistentVolumeClaim: { claimName: {{ .Values.data.existingClaim | default (printf "%s-data" (include "denll.name" .)) }} }
{{- end }}
- { name: tmp, emptyDir: { sizeLimit: 1Gi } }
{{- end }}

{{/* Whether the process of this pod wrote its heartbeat. There is no liveness probe: an outage of the database must not end a training. */}}
{{- define "denll.heartbeat" -}}
readinessProbe:
  exec: { command: [python, -m, app.healthcheck, heartbeat] }
  periodSeconds: 30
  timeoutSeconds: 15
{{- end }}
