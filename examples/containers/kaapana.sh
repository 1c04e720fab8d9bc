#!/bin/sh
# Kaapana gives a container a batch: a folder for each study, in which the operators' folders lie.
# Each is fused by itself; a study that fails does not stop the others, and fails the operator in the end.
set -u
: "${WORKFLOW_DIR:?}" "${BATCH_NAME:?}" "${OPERATOR_IN_DIR:?}" "${OPERATOR_OUT_DIR:?}"
failed=0
for element in "$WORKFLOW_DIR/$BATCH_NAME"/*/; do
  [ -d "$element$OPERATOR_IN_DIR" ] || continue
  medfuse run "$element$OPERATOR_IN_DIR" "$element$OPERATOR_OUT_DIR" "$@" || failed=$?
done
exit "$failed"
