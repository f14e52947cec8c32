#!/bin/sh
# Temporal's own tools bring its two stores to its version, whichever they have. A database that is cut within the schema
# may not be repeated: one that holds no job yet is dropped then, one that does is restored from its backup.
set -eu
update() { # database, its schema, its server
    temporal-sql-tool --endpoint "$3" --db "$1" create --defaultdb postgres
    temporal-sql-tool --endpoint "$3" --db "$1" setup-schema -v 0.0
    temporal-sql-tool --endpoint "$3" --db "$1" update-schema --schema-name "postgresql/v12/$2"
}
update temporal temporal "$SQL_HOST"
if [ -z "${ES_SERVER:-}" ]; then
    update temporal_visibility visibility "${VISIBILITY_SQL_HOST:-$SQL_HOST}"
else
    # The index is made from the template. One that is there stays, and gets the fields that it lacks.
    temporal-elasticsearch-tool setup-schema
    temporal-elasticsearch-tool create-index --index "$ES_VISIBILITY_INDEX"
    temporal-elasticsearch-tool update-schema --index "$ES_VISIBILITY_INDEX"
fi
