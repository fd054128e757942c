# The targets of the house. `make` alone builds the static binary at target/connect.

HOST     := $(shell rustc -vV | sed -n 's/^host: //p')
MUSL     := $(subst -gnu,-musl,$(HOST))
HAS_MUSL := $(shell test -d "$$(rustc --print sysroot)/lib/rustlib/$(MUSL)" && echo yes)
# musl where it is installed, else glibc linked statically: either way one file that needs no other.
TARGET   := $(if $(HAS_MUSL),$(MUSL),$(HOST))
# Not position-independent, so that `file` says what it is: statically linked.
STATIC   := RUSTFLAGS="-C target-feature=+crt-static -C relocation-model=static"
PREFIX   ?= /usr/local
FUZZ_SECONDS ?= 60

.PHONY: all demo test lint check bench fuzz deps install clean

all:
	$(STATIC) cargo build --release --locked --target $(TARGET)
	@ln -f target/$(TARGET)/release/connect target/connect
	@file target/connect 2>/dev/null || true

# The main job, on an embedded hub: each step is printed with the command that a user would type.
demo:
	@cargo test --quiet --locked --test demo

# nextest where it is installed; the same tests with cargo alone.
test:
	@if cargo nextest --version >/dev/null 2>&1; then cargo nextest run --locked --no-fail-fast; else cargo test --locked; fi

lint:
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings

check: lint test

# Figures beside the direct connection's, taken in the same run.
bench:
	@$(STATIC) cargo test --quiet --release --locked --target $(TARGET) --test bench

fuzz:
	@tests/scripts/fuzz $(FUZZ_SECONDS)

# The crates of the tree beside the committed, reviewed list.
deps:
	@tests/scripts/deps

install: all
	install -D -m 755 target/connect $(DESTDIR)$(PREFIX)/bin/connect
	target/connect help --man | install -D -m 644 /dev/stdin $(DESTDIR)$(PREFIX)/share/man/man1/connect.1
	target/connect completions bash | install -D -m 644 /dev/stdin $(DESTDIR)$(PREFIX)/share/bash-completion/completions/connect
	target/connect completions zsh | install -D -m 644 /dev/stdin $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_connect
	target/connect completions fish | install -D -m 644 /dev/stdin $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/connect.fish

clean:
	cargo clean
