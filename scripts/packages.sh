# Installs Debian's packages, for the scripts that read this file. They define say and die.

# install_packages NAME… installs packages without starting their services, now or at the next boot.
install_packages() {
	if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
		die "$1 is missing: install it with Debian's packages (as root this script does)"
	fi
	(
		exec 8</var/lib/dpkg
		flock 8
		say "installing $*"
		policy=/usr/sbin/policy-rc.d # says whether a package may start its service
		if ! [ -e $policy ]; then
			trap 'rm -f $policy' EXIT
			printf '#!/bin/sh\nexit 101\n' >$policy
			chmod 755 $policy
		fi
		export DEBIAN_FRONTEND=noninteractive
		apt-get update -q || say "apt-get update failed, trying with the lists that are there"
		apt-get install -y -q --no-install-recommends -o DPkg::Lock::Timeout=300 "$@" || exit
		for name; do
			[ ! -e "/etc/init.d/$name" ] || update-rc.d "$name" disable
		done
	) >&2 </dev/null 8<&- 9<&- || die "cannot install $*"
}
