# Provides RabbitMQ 4 for brokers.sh, which reads this file. Later releases of Debian contain it. debootstrap unpacks such
# a release once into a folder of its own, and its programs run there with chroot.
#
# Nothing is written to that folder afterwards, so any number of nodes can share it. Their data is under /tmp as always.

readonly cache=${DISPATCHER_CACHE:-/var/cache/dispatcher}

# Sets version to that of DIR's node, and root to the folder in which it runs. An empty root means this machine itself.
choose_version() {
	local kept
	version=${DISPATCHER_RABBITMQ:-}
	if [ -f "$state/version" ]; then
		kept=$(cat "$state/version")
		[ -z "$version" ] || [ "$version" = "$kept" ] || die "the node of $dir is not of version $version: stop it first"
		version=$kept
	fi
	case $version in
	"") suite= ;;
	4.0) suite=trixie ;;
	4.3) suite=forky ;;
	*) die "DISPATCHER_RABBITMQ=$version: it can be 4.0 or 4.3, or empty for that of this machine's own packages" ;;
	esac
	root=${version:+$cache/rabbitmq-$version}
}

# Makes root unless it exists and is whole. A second caller waits for the first.
unpack_rabbitmq() {
	[ "$(id -u)" = 0 ] || die "RabbitMQ $version runs in a chroot, and only root can make that"
	mkdir -p -m 755 -- "$cache"
	exec 8<"$cache"
	flock -w 900 8 || die "somebody else does not get ready with $cache"
	if ! whole; then
		say "unpacking RabbitMQ $version from Debian $suite into $root, once"
		command -v debootstrap >/dev/null && [ -f /usr/share/keyrings/debian-archive-keyring.gpg ] ||
			install_packages debootstrap debian-archive-keyring
		# In the background, because bash handles a signal only after its command in the foreground has ended.
		unpack >&2 </dev/null 9<&- &
		wait $! || die "cannot unpack RabbitMQ $version: $root.log"
	fi
	exec 8<&-
}

# Reports whether root is complete. It is not if somebody has deleted a part of it.
whole() {
	[ -f "$root/etc/dispatcher-unpacked" ] &&
		[ -z "$(dpkg --root="$root" --verify 2>&1)" ]
}

# The folder gets its name when it is complete. debootstrap mounts file systems in it. They are in a namespace of their
# own and end with it. rm still stays on one file system, to be safe.
unpack() {
	local mirror has
	rm -rf --one-file-system -- "$root" "$root.new"
	mirror=$(debian_mirror)
	[ -n "$mirror" ] || { say "apt knows no mirror of Debian"; return 1; }
	# debootstrap needs a script with the name of the release. A younger release has none yet, but all scripts are the
	# same.
	env "$tag" unshare --mount --propagation private debootstrap --variant=minbase --include=rabbitmq-server \
		"$suite" "$root.new" "$mirror" /usr/share/debootstrap/scripts/sid >"$root.log" 2>&1 || return 1
	has=$(dpkg-query --root="$root.new" -W -f '${Version}' rabbitmq-server)
	case $has in
	"$version".*) ;;
	*) say "Debian $suite has RabbitMQ $has by now, and not $version"; return 1 ;;
	esac
	find "$root.new/var/cache/apt" "$root.new/var/lib/apt/lists" -type f -delete # a third of the space
	: >"$root.new/etc/hosts"
	echo "$has" >"$root.new/etc/dispatcher-unpacked"
	mv -- "$root.new" "$root"
}

# Prints the mirror that this machine's apt uses.
debian_mirror() {
	local found
	found=$(debian_mirrors)
	if [ -z "$found" ]; then
		apt-get update -q >&2 || true
		found=$(debian_mirrors)
	fi
	echo "${found%%$'\n'*}"
}

debian_mirrors() {
	apt-get indextargets --format '$(ORIGIN) $(LABEL) $(COMPONENT) $(SITE)' 'Created-By: Packages' | sed -n 's/^Debian Debian main //p'
}

# Writes the script that runs a command inside root, as the node's user and in the node's folder.
write_enter() {
	# RabbitMQ looks up the name of its machine for every connection. Without this file nobody answers, and a greeting
	# took 5 s.
	echo "127.0.0.1 localhost $(uname -n)" >"$state/hosts"
	cat >"$state/enter" <<-END
		#!/bin/sh -e
		# Runs in a mount namespace of its own. So the mounts end with the last process that sees them, however it ends.
		mount --rbind /dev $root/dev
		mount --rbind /proc $root/proc
		mount --bind /tmp $root/tmp
		mount --bind $state/hosts $root/etc/hosts
		exec chroot --userspec=$owner --groups= $root /bin/sh -c 'cd $node && exec "\$@"' sh "\$@"
	END
	chmod 755 "$state/enter"
	chmod 644 "$state/hosts"
}
