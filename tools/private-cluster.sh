# Private PostgreSQL clusters, for the demo, tests and benchmarks: functions to source.
#
#	. tools/private-cluster.sh
#	cluster_build_stage build/stage			# from the repository's root
#	cluster_make mmgpt-test build/stage		# sets CLUSTER, a new directory
#	cluster_configure "mmgpt.threads = 1"	# any lines of postgresql.conf
#	cluster_start
#	cluster_psql -d postgres -c 'SELECT 1'
#	cluster_remove
#
# A cluster is a directory of its own under TMPDIR with data/, socket/, stage/ and
# server.log.  Nothing of the real server is touched: the extension lies in stage/, a
# copy of what `make install DESTDIR=...` wrote, found through extension_destdir and
# dynamic_library_path.  A copy, because the server's user may not be able to read
# the repository, and because a rebuild must not change the files under a running server.
#
# The server never runs as root: it belongs to the caller, or to postgres when the
# caller is root.  It listens on no network address, only on a socket in a directory
# of mode 0700, so that whoever reaches it may be trusted; the superuser is "postgres".

PG_CONFIG=${PG_CONFIG:-pg_config}

# Build, and install into a stage; silent unless it fails.  Argument: the stage.
cluster_build_stage()
{
	local log stage=$1

	log=$(mktemp)
	if ! { "${MAKE:-make}" --silent --jobs="$(nproc)" && rm -rf "$stage" &&
		"${MAKE:-make}" --silent install DESTDIR="$PWD/$stage"; } >"$log" 2>&1; then
		tail -n 40 "$log" >&2
		rm -f "$log"
		echo "the build failed (above)" >&2
		return 1
	fi
	rm -f "$log"
}

# Run a command as the owner of the cluster.
cluster_as_owner()
{
	if [ "$(id -u)" -eq 0 ]; then
		(cd / && runuser -u postgres -- "$@")
	else
		"$@"
	fi
}

# Make a cluster with a copy of the staged installation; arguments: name, stage.
# Sets CLUSTER to its directory.
cluster_make()
{
	local stage sharedir pkglibdir

	stage=$(cd "$2" && pwd)
	CLUSTER=$(mktemp -d "${TMPDIR:-/tmp}/$1-XXXXXX")
	cp -R "$stage" "$CLUSTER/stage"
	chmod -R a+rX "$CLUSTER/stage"
	mkdir -m 0700 "$CLUSTER/socket"
	if [ "$(id -u)" -eq 0 ]; then
		chmod 0755 "$CLUSTER"
		mkdir -m 0700 "$CLUSTER/data"
		touch "$CLUSTER/server.log"
		chown postgres "$CLUSTER/data" "$CLUSTER/socket" "$CLUSTER/server.log"
	fi

	cluster_as_owner "$("$PG_CONFIG" --bindir)/initdb" --pgdata="$CLUSTER/data" --username=postgres \
		--auth=trust --encoding=UTF8 --locale=C.UTF-8 --no-sync >"$CLUSTER/initdb.log" 2>&1 ||
		{
			tail -n 20 "$CLUSTER/initdb.log" >&2
			return 1
		}

	pkglibdir=$("$PG_CONFIG" --pkglibdir)
	cluster_configure "listen_addresses = ''" \
		"unix_socket_directories = '$CLUSTER/socket'" \
		"shared_preload_libraries = 'mmgpt'" \
		"dynamic_library_path = '$CLUSTER/stage$pkglibdir:\$libdir'" \
		"fsync = off" \
		"max_connections = 100"
	if [ "$("$PG_CONFIG" --version | sed 's/^[^0-9]*\([0-9]*\).*/\1/')" -ge 18 ]; then
		sharedir=$("$PG_CONFIG" --sharedir)
		cluster_configure "extension_control_path = '$CLUSTER/stage$sharedir:\$system'"
	else
		cluster_configure "extension_destdir = '$CLUSTER/stage'"
	fi
}

# Append lines to postgresql.conf, one an argument; a later line wins.
cluster_configure()
{
	printf '%s\n' "$@" | cluster_as_owner tee -a "$CLUSTER/data/postgresql.conf" >/dev/null
}

# Start the server, or print the end of its log and fail.
cluster_start()
{
	if ! cluster_as_owner "$("$PG_CONFIG" --bindir)/pg_ctl" --pgdata="$CLUSTER/data" --log="$CLUSTER/server.log" \
		--silent --wait --timeout=60 start >/dev/null 2>&1; then
		echo "the server did not start; the end of its log:" >&2
		cluster_log_tail >&2
		return 1
	fi
}

# Stop the server; no error when it does not run.
cluster_stop()
{
	if [ -f "$CLUSTER/data/postmaster.pid" ]; then
		cluster_as_owner "$("$PG_CONFIG" --bindir)/pg_ctl" --pgdata="$CLUSTER/data" --silent --wait \
			--mode="${1:-fast}" stop >/dev/null 2>&1 || true
	fi
}

# Stop the server and remove the cluster.
cluster_remove()
{
	cluster_stop immediate
	rm -rf "$CLUSTER"
}

# Print the last lines of the server's log.
cluster_log_tail()
{
	tail -n "${1:-20}" "$CLUSTER/server.log"
}

# Run psql in the cluster, without the user's own settings.
cluster_psql()
{
	PGOPTIONS= PGHOST=$CLUSTER/socket PGPORT=5432 PGUSER=postgres \
		"$("$PG_CONFIG" --bindir)/psql" --no-psqlrc --set=ON_ERROR_STOP=1 "$@"
}
