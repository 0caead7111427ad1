# Tests. test = unit + fuzz corpora + kernels + integration and golden (pytest).
TESTS := $(BUILD)/tests
ARCHIVES := $(LIBS:%=$(BUILD)/lib%.a)
TEST_INC := -I$(BUILD)/inc/tests
TEST_LINK = -Wl,--start-group $(ARCHIVES) -Wl,--end-group $(LIBS_ALL)
$(BUILD)/inc/tests: mk/tests.mk
	$(Q)rm -rf $@ && mkdir -p $@
	$(Q)for d in common proto kernels services tests; do ln -sfn $(CURDIR)/$$d $@/$$d; done
	$(Q)mkdir -p $(TESTS)/unit && ln -sfn ../../lib $(TESTS)/unit/lib # where backends are looked for

UNIT_SRC := $(wildcard tests/unit/*/test_*.c)
UNIT_BIN := $(UNIT_SRC:tests/unit/%.c=$(TESTS)/unit/%)
FUZZ_SRC := $(wildcard tests/fuzz/fuzz_*.c)
FUZZ_BIN := $(FUZZ_SRC:tests/fuzz/%.c=$(TESTS)/fuzz/%)
# Small programs that pytest drives.
CLI_SRC := $(wildcard tests/golden/*_cli.c tests/integration/*.c tests/bench/*.c)
CLI_BIN := $(patsubst %.c,$(TESTS)/%,$(notdir $(CLI_SRC)))

TEST_CC = $(CC) $(CPPFLAGS_ALL) $(TEST_INC) $(LLHTTP_CFLAGS) $(CFLAGS_ALL) -Wno-missing-prototypes -MMD -MP

$(TESTS)/unit/%: tests/unit/%.c $(ARCHIVES) | $(BUILD)/inc/tests
	$(call say,TEST,$@)
	@mkdir -p $(@D)
	$(Q)$(TEST_CC) $< $(LDFLAGS_ALL) $(TEST_LINK) -lcmocka -o $@

$(TESTS)/fuzz/%: tests/fuzz/%.c tests/fuzz/replay.c $(ARCHIVES) | $(BUILD)/inc/tests
	$(call say,FUZZ,$@)
	@mkdir -p $(@D)
	$(Q)$(TEST_CC) $< tests/fuzz/replay.c $(LDFLAGS_ALL) $(TEST_LINK) -o $@

define cli
$(TESTS)/$(notdir $(1:%.c=%)): $(1) $(ARCHIVES) | $(BUILD)/inc/tests
	$$(call say,TEST,$$@)
	@mkdir -p $$(@D)
	$$(Q)$$(TEST_CC) $$< $$(LDFLAGS_ALL) $$(TEST_LINK) -o $$@
endef
$(foreach c,$(CLI_SRC),$(eval $(call cli,$(c))))

SIM_SRC := $(wildcard tests/sim/*.c)
$(TESTS)/sim: $(SIM_SRC) tests/sim/sim.h $(ARCHIVES) | $(BUILD)/inc/tests
	$(call say,TEST,$@)
	@mkdir -p $(@D)
	$(Q)$(TEST_CC) $(SIM_SRC) $(LDFLAGS_ALL) $(TEST_LINK) -o $@

.PHONY: tests-build test test-unit test-fuzz test-python test-integration test-sim sim
tests-build: all $(UNIT_BIN) $(FUZZ_BIN) $(CLI_BIN) $(TESTS)/sim

# Histories of the scheduler: make sim SEEDS=1000000 [SEED=1], on every core. A failure names its
# seed; $(TESTS)/sim SEED replays it.
SEEDS ?= 100000
SEED ?= 1
sim: $(TESTS)/sim
	$(Q)n=$$(nproc); each=$$((($(SEEDS) + n - 1) / n)); pids=; rc=0; \
		for i in $$(seq 0 $$((n - 1))); do $(TESTS)/sim $$(($(SEED) + i * each)) $$each & pids="$$pids $$!"; done; \
		for p in $$pids; do wait $$p || rc=1; done; exit $$rc

test-sim: $(TESTS)/sim
	$(Q)$(TESTS)/sim 1 5000

test-unit: all $(UNIT_BIN)
	$(Q)BUILD=$(BUILD) mk/run-unit.sh $(UNIT_BIN)

test-fuzz: $(FUZZ_BIN)
	$(Q)for f in $(FUZZ_BIN); do n=$${f##*/fuzz_}; echo "== fuzz corpus $$n"; \
		$$f tests/fuzz/corpus/$$n || exit 1; done

PYTEST_PATHS ?= tests/integration tests/golden
test-python: test-deps all $(CLI_BIN)
	$(Q)PHALANX_BIN=$(abspath $(BIN)) PHALANX_TESTS_BIN=$(abspath $(TESTS)) PHALANX_VARIANT=$(VARIANT) \
		$(O)/venv/bin/python -m pytest -q -p no:cacheprovider $(PYTEST_PATHS) $(PYTEST_ARGS)

test-integration:
	$(Q)$(MAKE) --no-print-directory test-python PYTEST_PATHS=tests/integration

test: test-deps
	$(Q)$(MAKE) --no-print-directory test-unit test-sim test-fuzz test-python

# Coverage-guided fuzzing: make fuzz FUZZ=json SECONDS=60
FUZZ_CC ?= clang
SECONDS ?= 60
.PHONY: fuzz
fuzz:
	@test -n "$(FUZZ)" || { echo "usage: make fuzz FUZZ=$(subst $(eval) ,|,$(patsubst tests/fuzz/fuzz_%.c,%,$(FUZZ_SRC))) SECONDS=60"; exit 2; }
	$(Q)$(MAKE) --no-print-directory O=$(O)/fuzz VARIANT=debug CC=$(FUZZ_CC) CFLAGS="-O1 -Wno-everything -fsanitize=fuzzer-no-link,address,undefined" \
		LDFLAGS="-fsanitize=address,undefined" $(LIBS:%=$(O)/fuzz/debug/lib%.a) $(O)/fuzz/debug/inc/tests
	$(Q)$(FUZZ_CC) $(CPPFLAGS_ALL) -I$(O)/fuzz/debug/inc/tests $(LLHTTP_CFLAGS) -std=c11 -g -O1 -fsanitize=fuzzer,address,undefined \
		tests/fuzz/fuzz_$(FUZZ).c -Wl,--start-group $(LIBS:%=$(O)/fuzz/debug/lib%.a) -Wl,--end-group $(LIBS_ALL) -o $(O)/fuzz/fuzz_$(FUZZ)
	$(Q)mkdir -p $(O)/fuzz/corpus/$(FUZZ)
	$(O)/fuzz/fuzz_$(FUZZ) -max_total_time=$(SECONDS) -timeout=10 -rss_limit_mb=2048 $(O)/fuzz/corpus/$(FUZZ) tests/fuzz/corpus/$(FUZZ)

-include $(wildcard $(TESTS)/unit/*/*.d $(TESTS)/fuzz/*.d $(TESTS)/*.d)

# Slow: minutes on one GPU.
.PHONY: sanitize
sanitize: $(if $(NVCC),$(CUDA_BACKEND)) $(CPU_BACKEND) $(KERNEL_TEST_BIN) $(PEERS_TEST_BIN)
	$(Q)tests/kernels/sanitize.sh $(BUILD)/tests/kernels
