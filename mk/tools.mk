# Tools for people: help, format, lint, coverage.
CLANG_FORMAT ?= clang-format-14
CLANG_TIDY ?= clang-tidy-14
# What people write; tables made by scripts are left alone.
FORMAT_SRC := $(filter-out %_tables.c,$(wildcard $(foreach d,common proto kernels kernels/* services/* services/*/* tests/unit/* \
	tests/fuzz tests/golden tests/integration tests/bench tests/kernels tests/sim,$(foreach e,c h cc,$(d)/*.$(e)))))
TIDY_SRC := $(filter %.c,$(filter-out tests/% kernels/cuda/%,$(FORMAT_SRC)))

.PHONY: help format format-check lint lint-deps cover cover-core
help:
	@echo "Targets (variables: VARIANT=release|debug|asan|ubsan|tsan, V=1, O=build, PREFIX=/usr/local):"
	@printf '  %-14s %s\n' \
	  run "install what is missing, build, serve the demo model at 127.0.0.1:1919 (ARGS=...)" \
	  test "install what tests need and run all of them" \
	  all "build executables and backends (the default)" \
	  deps "install what the build needs (apt)" \
	  test-deps "install what the tests need (apt, and a Python environment in $(O)/venv)" \
	  test-unit "unit tests" \
	  sim "histories of the scheduler in simulated time: SEEDS=1000000 SEED=1" \
	  test-fuzz "replay of the fuzz corpora" \
	  test-python "integration and golden tests (PYTEST_PATHS=, PYTEST_ARGS=)" \
	  fuzz "coverage-guided fuzzing: FUZZ=json SECONDS=60" \
	  format "clang-format on all sources" \
	  format-check "are all sources formatted?" \
	  lint "format-check and clang-tidy" \
	  cover "line coverage of the unit tests" \
	  cover-core "branches of the scheduler's core that its tests and the simulator take" \
	  install "to PREFIX (DESTDIR is honoured); uninstall" \
	  bundle "relocatable folder with its libraries: $(O)/bundle" \
	  dist "source archive" \
	  compose "containers: build, start, wait until ready; compose-down, compose-test" \
	  conf "write deploy/cluster.conf from the table of options" \
	  man "man pages in $(BUILD)/man" \
	  clean "remove $(O)"

lint-deps:
	@mk/install-deps.sh build lint

format: lint-deps
	$(Q)$(CLANG_FORMAT) -i $(FORMAT_SRC)

format-check: lint-deps
	$(Q)$(CLANG_FORMAT) --dry-run -Werror $(FORMAT_SRC)

# One stamp a file: only what changed is looked at again, and -j spreads the work.
TIDY_STAMPS := $(TIDY_SRC:%.c=$(O)/tidy/%.ok)
lint: format-check
	$(Q)$(MAKE) --no-print-directory $(TIDY_STAMPS)

$(O)/tidy/%.ok: %.c .clang-tidy | $(BUILD)/inc/tests
	$(call say,TIDY,$<)
	@mkdir -p $(@D)
	$(Q)$(CLANG_TIDY) --quiet --warnings-as-errors='*' $< -- -std=c11 $(CPPFLAGS_ALL) $(TEST_INC) \
		$(LLHTTP_CFLAGS) 2>$@.log || { cat $@.log; exit 1; }
	@touch $@

cover:
	@mk/install-deps.sh build test cover
	$(Q)$(MAKE) --no-print-directory O=$(O)/cover VARIANT=debug CFLAGS=--coverage CXXFLAGS=--coverage \
		LDFLAGS=--coverage test-unit
	$(Q)gcovr -r . --object-directory $(O)/cover -e tests/ --gcov-ignore-parse-errors

# Of the core alone: what takes part in no decision of a step is left to `make cover`. -DNDEBUG: what
# can not be is no branch.
CORE_SRC := $(patsubst %,services/scheduler/%.c,admission apply core memory pages plan policies \
	policy_fcfs policy_lpm policy_priority prefix recover sequence)
CORE_COVER := $(O)/cover-core/debug
CORE_TESTS := $(patsubst %,$(CORE_COVER)/tests/unit/scheduler/test_%,core pause prefix scores sharing)
cover-core:
	$(Q)$(MAKE) --no-print-directory O=$(O)/cover-core VARIANT=debug CFLAGS='--coverage -DNDEBUG' \
		LDFLAGS=--coverage $(CORE_TESTS) $(CORE_COVER)/tests/sim
	$(Q)find $(CORE_COVER) -name '*.gcda' -delete
	$(Q)BUILD=$(CORE_COVER) mk/run-unit.sh $(CORE_TESTS)
	$(Q)$(CORE_COVER)/tests/sim 1 2000
	$(Q)python3 mk/branches.py $(CORE_COVER)/obj $(CORE_SRC)
