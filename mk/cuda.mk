# The CUDA backend, built when nvcc is found. Host code is C, compiled as everything is; kernels are
# built for Hopper and, as sm_80 code and PTX, for whatever else there is from Ampere on.
NVCC := $(shell command -v nvcc 2>/dev/null)
CUDA_BACKEND := $(LIB)/libphalanx-cuda.so

ifneq ($(NVCC),)
CUDA_HOME := $(patsubst %/bin/nvcc,%,$(realpath $(NVCC)))
CUDA_GENCODE ?= -gencode=arch=compute_90a,code=sm_90a -gencode=arch=compute_80,code=[sm_80,compute_80]
NVCC_FLAGS := -O3 -g -std=c++17 $(CUDA_GENCODE) -Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-Wextra
ifdef CI
NVCC_FLAGS += -Werror=all-warnings
endif

DIR_cuda := kernels/cuda
SEES_cuda := common kernels
$(eval $(call library,cuda))
OBJ_cuda_cu := $(patsubst %.cu,$(BUILD)/obj/%.cu.o,$(wildcard kernels/cuda/*.cu))
$(OBJ_cuda): OPT += -fvisibility=hidden
$(OBJ_cuda): CPPFLAGS_ALL += -isystem $(CUDA_HOME)/include
# Its loops over weights are what loading waits for.
ifeq ($(VARIANT),release)
$(BUILD)/obj/kernels/cuda/memory.o: OPT += -O3
endif
$(OBJ_cuda_cu): | $(BUILD)/inc/cuda
# Penalties round as in the reference.
$(BUILD)/obj/kernels/cuda/sample.cu.o: NVCC_FLAGS += --fmad=false

$(BUILD)/obj/%.cu.o: %.cu
	$(call say,NVCC,$<)
	@mkdir -p $(@D)
	$(Q)$(NVCC) -I$(BUILD)/inc/cuda $(NVCC_FLAGS) -MMD -MP -MF $(@:.o=.d) -c $< -o $@

$(CUDA_BACKEND): $(OBJ_cuda) $(OBJ_cuda_cu) $(BUILD)/libcommon.a
	$(call say,LD,$@)
	@mkdir -p $(@D)
	$(Q)$(CXX) $(LDFLAGS_ALL) -shared -Wl,-Bsymbolic -Wl,--exclude-libs,ALL $^ -L$(CUDA_HOME)/lib64 \
		-Wl,-rpath,'$$ORIGIN' -Wl,-rpath,$(CUDA_HOME)/lib64 \
		-lcudart_static -lcublasLt -lnccl -lrt -ldl -lm -o $@

# Tests of what the backend does not show: linked with its objects.
PEERS_TEST_BIN := $(patsubst %,$(BUILD)/tests/kernels/cuda/%,test_peers_cuda test_gemm_cuda bench_allreduce_cuda \
	bench_decode_cuda bench_gemm_cuda bench_prefill_cuda)
$(PEERS_TEST_BIN): $(BUILD)/tests/kernels/cuda/%: tests/kernels/cuda/%.c \
		tests/kernels/cuda/ranks.c tests/kernels/support.c \
		$(wildcard tests/kernels/cuda/*.h) $(BUILD)/obj/tests/kernels/cuda/peers.cu.o $(OBJ_cuda) \
		$(OBJ_cuda_cu) $(BUILD)/libcommon.a | $(BUILD)/inc/tests
	$(call say,TEST,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(CPPFLAGS_ALL) -I$(BUILD)/inc/tests -isystem $(CUDA_HOME)/include $(CFLAGS_ALL) \
		-Wno-missing-prototypes $(filter %.c %.o,$^) $(LDFLAGS_ALL) $(BUILD)/libcommon.a \
		-L$(CUDA_HOME)/lib64 -Wl,-rpath,$(CUDA_HOME)/lib64 -lcudart_static -lcublasLt -lnccl \
		-lcmocka -lstdc++ -lpthread -lrt -ldl -lm -o $@
$(BUILD)/obj/tests/kernels/cuda/peers.cu.o: | $(BUILD)/inc/tests
$(BUILD)/obj/tests/kernels/cuda/peers.cu.o: NVCC_FLAGS += --fmad=false -I$(BUILD)/inc/tests

.PHONY: cuda
cuda: $(CUDA_BACKEND)
all: $(CUDA_BACKEND)
test: test-kernels
else
.PHONY: cuda
cuda:
	@echo "cuda: nvcc is not on the PATH"; exit 2
endif

# Kernel tests compare backends; they link with nothing but the common library, and skip without a
# GPU. Programs named bench_ are built and not run.
KERNEL_TEST_COMMON := tests/kernels/support.c tests/kernels/pair.c
KERNEL_TEST_DEPS := $(wildcard common/*.h kernels/*.h tests/kernels/*.h)
KERNEL_TEST_SRC := $(wildcard tests/kernels/*.c)
KERNEL_TEST_BIN := $(patsubst tests/kernels/%.c,$(BUILD)/tests/kernels/%,$(filter-out $(KERNEL_TEST_COMMON),$(KERNEL_TEST_SRC)))
$(BUILD)/tests/kernels/%: tests/kernels/%.c $(KERNEL_TEST_COMMON) $(KERNEL_TEST_DEPS) $(BUILD)/libcommon.a | $(BUILD)/inc/tests
	$(call say,TEST,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(CPPFLAGS_ALL) -I$(BUILD)/inc/tests $(CFLAGS_ALL) -Wno-missing-prototypes \
		$< $(KERNEL_TEST_COMMON) $(LDFLAGS_ALL) $(BUILD)/libcommon.a -lcmocka -lpthread -ldl -lm -o $@

tests-build: $(KERNEL_TEST_BIN) $(PEERS_TEST_BIN)
.PHONY: test-kernels
test-kernels: $(if $(NVCC),$(CUDA_BACKEND)) $(CPU_BACKEND) $(KERNEL_TEST_BIN) \
		$(PEERS_TEST_BIN)
	$(Q)BUILD=$(BUILD) mk/run-unit.sh $(filter $(BUILD)/tests/kernels/test_%,$(KERNEL_TEST_BIN)) \
		$(filter $(BUILD)/tests/kernels/cuda/test_%,$(PEERS_TEST_BIN))
