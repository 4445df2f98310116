# How a test in bash is skipped: counted as skipped, and not as passed. To source.
#
#   source bazel/skip.sh
#   skip <name of the test> <reason>

# Ends the test.
skip() {
  echo "skipped: $2"
  [[ -z "${XML_OUTPUT_FILE:-}" ]] || cat > "$XML_OUTPUT_FILE" << XML
<testsuites><testsuite name="$1"><testcase classname="$1"
  name="$1"><skipped message="$2"/></testcase></testsuite></testsuites>
XML
  exit 0
}
