#!/bin/sh
# Temporal's own tool brings its two databases to its version. Each step may be repeated, so an upgrade runs it again.
set -eu
for pair in temporal:temporal temporal_visibility:visibility; do
    database=${pair%:*} schema=${pair#*:}
    temporal-sql-tool --db "$database" create --defaultdb postgres
    temporal-sql-tool --db "$database" setup-schema -v 0.0
    temporal-sql-tool --db "$database" update-schema --schema-name "postgresql/v12/$schema"
done
