#!/usr/bin/env bash
# Trains on TPU slices of a GKE cluster as a JobSet; the arguments are those of metamorph_jax.train.
#
#   NAME=vpit-8b IMAGE=REGISTRY/metamorph_jax ACCELERATOR=tpu-v5p-slice TOPOLOGY=4x4x4 CLAIM=runs \
#     launch/gke.sh --config=configs/vpit_8b.py --workdir=/shared/runs/8b
#   launch/gke.sh --dry_run --config=...       prints the JobSet instead of applying it
#
# IMAGE holds the repository at its working directory, with jax[tpu]. CLAIM is a PersistentVolumeClaim that all
# pods may write (Filestore), mounted at /shared. SLICES (default 1), CHIPS_PER_HOST (4), MAX_RESTARTS (100).
source "$(dirname "$0")/common.sh"
(($#)) || usage
require NAME "of the JobSet" IMAGE "with the repository" CLAIM "PersistentVolumeClaim with the runs" \
  ACCELERATOR "such as tpu-v5p-slice" TOPOLOGY "such as 4x4x4"

if [[ ! $TOPOLOGY =~ ^[0-9]+(x[0-9]+)*$ ]]; then
  echo "$0: TOPOLOGY=$TOPOLOGY: expected chips along each axis, such as 4x4x4" >&2
  exit 2
fi
chips=${CHIPS_PER_HOST:-4}
hosts=$(((${TOPOLOGY//x/*} + chips - 1) / chips))
command='"python", "-m", "metamorph_jax.train"'
for argument in "$@"; do
  argument=${argument//\\/\\\\}
  argument=${argument//\$(/\$\$(} # Kubernetes would put a variable there
  command+=", \"${argument//\"/\\\"}\""
done
# A pod that stopped and saved ends with 75: the Job fails, and JobSet starts all pods again. After 2, an error that
# would come again, it does not.
jobset=$(
  cat <<YAML
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $NAME
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: ${MAX_RESTARTS:-100}
    rules:
      - action: FailJobSet
        onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
    - name: slice
      replicas: ${SLICES:-1}
      template:
        spec:
          parallelism: $hosts
          completions: $hosts
          completionMode: Indexed
          backoffLimit: 0
          podFailurePolicy:
            rules:
              - action: FailJob
                onExitCodes:
                  containerName: train
                  operator: In
                  values: [2]
          template:
            spec:
              restartPolicy: Never
              terminationGracePeriodSeconds: 300
              hostNetwork: true
              dnsPolicy: ClusterFirstWithHostNet
              nodeSelector:
                cloud.google.com/gke-tpu-accelerator: $ACCELERATOR
                cloud.google.com/gke-tpu-topology: $TOPOLOGY
              containers:
                - name: train
                  image: $IMAGE
                  command: [$command]
                  ports:
                    - containerPort: 8471
                    - containerPort: 8482
                  resources:
                    limits:
                      google.com/tpu: $chips
                  env:
                    - name: JAX_COMPILATION_CACHE_DIR
                      value: /shared/compiled
                  volumeMounts:
                    - name: shared
                      mountPath: /shared
              volumes:
                - name: shared
                  persistentVolumeClaim:
                    claimName: $CLAIM
YAML
)
if [[ $DRY_RUN ]]; then
  echo "$jobset"
else
  kubectl apply --filename=- <<<"$jobset"
fi
