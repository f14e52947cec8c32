#!/bin/sh
# Temporal's own tool brings its two databases to its version, whichever they have. One that is cut within the schema may
# not be repeated: a database that holds no job yet is dropped then, one that does is restored from its backup.
set -eu
update() { # database, its schema, its server
    temporal-sql-tool --endpoint "$3" --db "$1" create --defaultdb postgres
    temporal-sql-tool --endpoint "$3" --db "$1" setup-schema -v 0.0
    temporal-sql-tool --endpoint "$3" --db "$1" update-schema --schema-name "postgresql/v12/$2"
}
update temporal temporal "$SQL_HOST"
update temporal_visibility visibility "${VISIBILITY_SQL_HOST:-$SQL_HOST}"
