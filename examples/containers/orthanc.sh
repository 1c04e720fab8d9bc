#!/bin/sh
# Fuse a study of an Orthanc server and send the results back into it:
#
#     orthanc.sh http://localhost:8042 STUDY [options of medfuse run]
#
# STUDY is Orthanc's identifier of the study, as OnStableStudy gets it. A login goes into ~/.netrc.
set -eu
server=$1 study=$2
shift 2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
curl --fail --silent --show-error --netrc-optional "$server/studies/$study/archive" -o "$work/study.zip"
python3 -m zipfile -e "$work/study.zip" "$work/in"
code=0
medfuse run "$work/in" "$work/out" "$@" || code=$?
test -d "$work/out" || exit "$code"
find "$work/out" -name '*.dcm' | while read -r file; do
  curl --fail --silent --show-error --netrc-optional -o /dev/null --data-binary "@$file" "$server/instances"
done
exit "$code"
