# Libraries (one a folder), executables (one a service), the CPU backend.
#
# A library sees only the folders named for it here: its include path is a folder of links, so a
# wrong #include does not compile.
LIBS := common proto kernels gateway tokenizer scheduler worker bench launcher
SEES_common := common
SEES_proto := common proto
SEES_kernels := common kernels
SEES_gateway := common proto
SEES_tokenizer := common proto
SEES_scheduler := common proto
SEES_worker := common proto kernels
SEES_bench := common
SEES_launcher := common proto services/bench
SEES_cpu := common kernels

DIR_common := common
DIR_proto := proto
DIR_kernels := kernels
DIR_cpu := kernels/cpu
DIR_gateway := services/gateway
DIR_tokenizer := services/tokenizer
DIR_scheduler := services/scheduler
DIR_worker := services/worker
DIR_bench := services/bench
DIR_launcher := services/launcher

BIN := $(BUILD)/bin
LIB := $(BUILD)/lib
PROGRAMS := phalanx phalanx-gateway phalanx-tokenizer phalanx-scheduler phalanx-worker
PROGRAM_LIB_phalanx := launcher
PROGRAM_LIB_phalanx-gateway := gateway
PROGRAM_LIB_phalanx-tokenizer := tokenizer
PROGRAM_LIB_phalanx-scheduler := scheduler
PROGRAM_LIB_phalanx-worker := worker
CPU_BACKEND := $(LIB)/libphalanx-cpu.so

.PHONY: all clean
all: $(PROGRAMS:%=$(BIN)/%) $(CPU_BACKEND)

# $(1): library. Objects of its folder (main.c apart), its archive, its include folder.
define library
SRC_$(1) := $$(filter-out %/main.c,$$(wildcard $$(DIR_$(1))/*.c) $$(wildcard $$(DIR_$(1))/*/*.c))
ifneq ($(1),tokenizer)
SRC_$(1) := $$(filter-out %/main.c,$$(wildcard $$(DIR_$(1))/*.c))
endif
OBJ_$(1) := $$(SRC_$(1):%.c=$(BUILD)/obj/%.o)
$(BUILD)/inc/$(1): mk/rules.mk
	$$(Q)rm -rf $$@ && mkdir -p $$@/services
	$$(Q)for d in $$(SEES_$(1)); do ln -sfn $$(CURDIR)/$$$$d $$@/$$$$d; done
	$$(Q)ln -sfn $$(CURDIR)/$$(DIR_$(1)) $$@/services/$(1)
$$(OBJ_$(1)) $(BUILD)/obj/$$(DIR_$(1))/main.o: INC = -I$(BUILD)/inc/$(1)
$$(OBJ_$(1)) $(BUILD)/obj/$$(DIR_$(1))/main.o: | $(BUILD)/inc/$(1)
endef
$(foreach l,$(LIBS) cpu,$(eval $(call library,$(l))))

define archive
$(BUILD)/lib$(1).a: $$(OBJ_$(1)) $$(EXTRA_OBJ_$(1))
	$$(call say,AR,$$@)
	$$(Q)rm -f $$@ && $$(AR) rcs $$@ $$^
endef

ifneq ($(LLHTTP_DIR),)
EXTRA_OBJ_gateway := $(patsubst %,$(BUILD)/obj/llhttp/%.o,api http llhttp)
EXTRA_OBJ_bench := $(EXTRA_OBJ_gateway)
$(BUILD)/obj/llhttp/%.o: $(LLHTTP_DIR)/%.c
	$(call say,CC,$<)
	@mkdir -p $(@D)
	$(Q)$(CC) $(OPT) -fPIC -w $(LLHTTP_CFLAGS) -c $< -o $@
endif
$(foreach l,$(LIBS),$(eval $(call archive,$(l))))

$(BUILD)/obj/%.o: %.c
	$(call say,CC,$<)
	@mkdir -p $(@D)
	$(Q)$(CC) $(CPPFLAGS_ALL) $(INC) $(LLHTTP_CFLAGS) $(CFLAGS_ALL) $(CFLAGS_$(subst /,_,$*)) -MMD -MP -c $< -o $@

$(BUILD)/obj/%.o: %.cc
	$(call say,CXX,$<)
	@mkdir -p $(@D)
	$(Q)$(CXX) $(CPPFLAGS_ALL) $(INC) $(CXXFLAGS_ALL) -MMD -MP -c $< -o $@

# Bundles carry their libraries in ../lib. A DT_RPATH, since a RUNPATH does not reach what those
# libraries need in turn.
RUN_PATH := -Wl,--disable-new-dtags,-rpath,'$$ORIGIN/../lib'
ARCHIVES_OF = $(BUILD)/lib$(1).a $(if $(filter worker,$(1)),$(BUILD)/libkernels.a) \
	$(if $(filter launcher,$(1)),$(BUILD)/libbench.a) $(BUILD)/libproto.a $(BUILD)/libcommon.a
define program
$(BIN)/$(1): $(BUILD)/obj/$$(DIR_$$(PROGRAM_LIB_$(1)))/main.o $$(call ARCHIVES_OF,$$(PROGRAM_LIB_$(1)))
	$$(call say,LD,$$@)
	@mkdir -p $$(@D)
	$$(Q)$$(CC) $$(LDFLAGS_ALL) $$(RUN_PATH) -pie $$^ $$(LIBS_ALL) -o $$@
endef
$(foreach p,$(PROGRAMS),$(eval $(call program,$(p))))

# The CPU backend is a shared object, loaded by name at run time as every backend is. Its loops are
# what a CPU step spends its time in, hence -O3; contraction stays off so that all builds agree.
OBJ_cpu_cc := $(patsubst %.cc,$(BUILD)/obj/%.o,$(wildcard kernels/cpu/*.cc))
$(OBJ_cpu) $(OBJ_cpu_cc): OPT += -fvisibility=hidden
$(OBJ_cpu_cc): INC = -I$(BUILD)/inc/cpu
$(OBJ_cpu_cc): | $(BUILD)/inc/cpu
ifeq ($(VARIANT),release)
$(OBJ_cpu): OPT += -O3
endif
$(CPU_BACKEND): $(OBJ_cpu) $(OBJ_cpu_cc) $(BUILD)/libcommon.a
	$(call say,LD,$@)
	@mkdir -p $(@D)
	$(Q)$(CXX) $(LDFLAGS_ALL) -shared -Wl,-Bsymbolic -Wl,--exclude-libs,ALL $^ -lgloo -ljansson -lm -o $@

clean:
	rm -rf $(O)

-include $(shell find $(BUILD)/obj -name '*.d' 2>/dev/null)
