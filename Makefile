# `make` alone builds the static binary at target/connect. `make ROLE=join` builds target/connect-join with only what a
# joiner needs; the roles are hub, fleet, agent, join, proxy, discover, or a list of them like ROLE=hub,fleet.
# `make FIPS=1` builds target/connect-fips with the validated module of AWS-LC, where Go and CMake are: see
# `connect help security`.
# `make DEFAULT_HUB=URL` builds in the hub that `connect up` means without --hub; DEFAULT_HUB=none builds in none.
# `make OFFLINE=1` builds from the folder that `make vendor` has made, without a network.

HOST     := $(shell rustc -vV | sed -n 's/^host: //p')
MUSL     := $(subst -gnu,-musl,$(HOST))
HAS_MUSL := $(shell test -d "$$(rustc --print sysroot)/lib/rustlib/$(MUSL)" && echo yes)
# musl where it is installed, else glibc linked statically: either way one file that needs no other.
TARGET   := $(if $(HAS_MUSL),$(MUSL),$(HOST))
# Where cargo unpacks the sources of crates; it makes the folder when it first fetches.
REGISTRY := $(if $(CARGO_HOME),$(CARGO_HOME),$(HOME)/.cargo)/registry/src
CRATES   ?= $(if $(OFFLINE),$(CURDIR)/target/vendor,$(firstword $(wildcard $(REGISTRY)/*) $(REGISTRY)))
VENDORED = $(if $(OFFLINE),--offline --config target/vendor.toml)
BUILT    = $(or $(CARGO_TARGET_DIR),target)/$(TARGET)/release/connect
# Commit and date, for `connect --version`. A source archive has neither, wherever it is unpacked.
CONNECT_BUILD ?= $(shell git ls-files --error-unmatch Makefile >/dev/null 2>&1 && \
	echo "$$(git describe --always --dirty --abbrev=12 --exclude='*') $$(git log -1 --format=%cs)")
# Not position-independent, so that `file` says what it is: statically linked. No path of this machine gets in, so
# that the same sources give the same bytes anywhere.
STATIC   = CONNECT_BUILD="$(CONNECT_BUILD)" RUSTFLAGS="-C target-feature=+crt-static -C relocation-model=static \
	--remap-path-prefix=$(CURDIR)=/connect --remap-path-prefix=$(CRATES)=/crates"
comma    := ,
BINARY   = target/connect$(if $(ROLE),-$(subst $(comma),-,$(ROLE)))$(if $(FIPS),-fips)
FEATURES = $(if $(ROLE),--no-default-features --features $(ROLE)) $(if $(FIPS),--features fips)
PREFIX   ?= /usr/local
TOPICS   = $(basename $(notdir $(wildcard src/cli/topics/*.txt)))
FUZZ_SECONDS ?= 60
SOAK_SECONDS ?= 600

.PHONY: all fetch demo test lint check roles bench bench-peers load attack fuzz soak e2e deps audit sbom vendor reproducible release verify install clean

all: fetch
	$(STATIC) cargo build --release --locked --target $(TARGET) $(FEATURES) $(VENDORED)
	@mkdir -p target
	@ln -f $(BUILT) $(BINARY) 2>/dev/null || cp -f $(BUILT) $(BINARY)
	@file $(BINARY) 2>/dev/null || true

# First, so that the folder of the crates' sources has its name.
fetch:
	@$(if $(OFFLINE),test -f target/vendor.toml || { echo "make vendor comes first"; exit 1; },cargo fetch --quiet --locked --target $(TARGET))

# The main job on this machine: each command is shown as it runs.
demo:
	cargo run --locked -- demo

# nextest where it is installed; the same tests with cargo alone.
test:
	@if cargo nextest --version >/dev/null 2>&1; then cargo nextest run --locked --no-fail-fast; else cargo test --locked; fi

# The programs that are run by name are no test targets for cargo, so they stand here.
lint:
	cargo fmt --check
	cargo clippy --locked --all-targets $(addprefix --test ,attack bench bench_proxy fleet_load load peers) -- -D warnings

check: lint test

# The binary of each role, without warnings and at work with the others.
roles:
	@tests/scripts/roles

# Figures beside the direct connection's, taken in the same run.
bench:
	@$(STATIC) cargo test --quiet --release --locked --target $(TARGET) --test bench --test bench_proxy

# The same work through the tunnel and its peers. Those that are crates are built below target/, the others are
# Debian's: openssh-server haproxy nginx-light libnginx-mod-stream openssl. The bars are in target/bench-peers.svg, too.
bench-peers: $(addprefix target/peers/bin/,rathole bore dumbpipe)
	@$(STATIC) cargo test --quiet --release --locked --target $(TARGET) --test peers

target/peers/bin/%:
	cargo install --quiet --root target/peers $(patsubst bore,bore-cli,$*) $(if $(filter dumbpipe,$*),--locked)

# Thousands at once, and what the others notice; LOAD_SECONDS=60 is how long 1000 connections a second last.
load:
	@$(STATIC) cargo test --quiet --release --locked --target $(TARGET) --test load --test fleet_load

# Hostile peers against a real hub, agent, joiner and proxy: what each achieves, and the bound that must hold.
attack:
	@cargo test --quiet --locked --test attack

# Every target for so many seconds; RUNS=100000000 instead for so many executions each.
fuzz:
	@tests/scripts/fuzz $(FUZZ_SECONDS)

# Kills, cuts, pauses and full disks, for so long; CONNECT_CHAOS_SEED=N,M replays what a failing run printed.
soak:
	@CONNECT_SOAK_SECONDS=$(SOAK_SECONDS) cargo test --quiet --locked --test chaos -- --nocapture --test-threads 1

# Programs that people use, through the whole path: PostgreSQL, Redis, curl, git, WebSocket, gRPC, Chromium.
e2e: all
	@tests/scripts/e2e

# The crates of the tree beside the committed, reviewed list.
deps:
	@tests/scripts/deps

# The same, with licences, bans and sources, how many lines there are to read, and names that mean two things. With
# ROLE=join: what the binary for that role is built from.
audit:
	@ROLE=$(ROLE) tests/scripts/audit

# What the program is made of, as CycloneDX.
sbom:
	@mkdir -p target
	@tests/scripts/sbom target/connect.cdx.json

# The sources of every crate, for a build without a network: make OFFLINE=1
vendor:
	@mkdir -p target
	@cargo vendor --locked --versioned-dirs target/vendor > target/vendor.toml 2> target/vendor.log
	@echo "vendor: $$(ls target/vendor | wc -l) crates; build with: make OFFLINE=1"

# Another folder, vendored sources, no network: the same binary, bit for bit.
reproducible: all vendor
	@CONNECT_BUILD="$(CONNECT_BUILD)" tests/scripts/reproducible

# Signed binaries with all that an auditor wants beside them, in target/release-VERSION: make release KEY=~/.ssh/id_ed25519
release: fetch
	@KEY="$(KEY)" tests/scripts/release

# Checks such a folder with OpenSSH alone: make verify KEY=release.pub; with REBUILD=1 it also builds everything again.
verify: $(if $(REBUILD),vendor)
	@CONNECT_BUILD="$(CONNECT_BUILD)" KEY="$(KEY)" REBUILD="$(REBUILD)" tests/scripts/verify

install: all
	install -D -m 755 target/connect $(DESTDIR)$(PREFIX)/bin/connect
	target/connect help --man | install -D -m 644 /dev/stdin $(DESTDIR)$(PREFIX)/share/man/man1/connect.1
	@for topic in $(TOPICS); do target/connect help $$topic --man | \
		install -D -m 644 /dev/stdin $(DESTDIR)$(PREFIX)/share/man/man7/connect-$$topic.7 || exit 1; done
	target/connect completions bash | install -D -m 644 /dev/stdin $(DESTDIR)$(PREFIX)/share/bash-completion/completions/connect
	target/connect completions zsh | install -D -m 644 /dev/stdin $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_connect
	target/connect completions fish | install -D -m 644 /dev/stdin $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/connect.fish

clean:
	cargo clean
