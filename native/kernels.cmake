# The kernels as a static library without Python; check/ builds the same sources under the sanitizers.
# Each instruction set has its own file and flags; everything else is compiled for the oldest CPU, and
# isa.cpp decides at run time.
include(CheckCXXCompilerFlag)

set(here "${CMAKE_CURRENT_LIST_DIR}")
add_library(kernels STATIC "${here}/isa.cpp" "${here}/pool.cpp" "${here}/linear.cpp" "${here}/linear_pack.cpp"
                           "${here}/linear_gradient.cpp" "${here}/experts.cpp"
                           "${here}/linear_blocks.cpp" "${here}/quantize.cpp" "${here}/rows.cpp"
                           "${here}/attention.cpp" "${here}/gradients.cpp" "${here}/vocab.cpp" "${here}/program.cpp"
                           "${here}/program_steps.cpp")
set_target_properties(kernels PROPERTIES POSITION_INDEPENDENT_CODE ON)
target_include_directories(kernels PUBLIC "${here}")
# A compiler that fuses products and sums as it likes may do it in one variant of a loop and not in another.
target_compile_options(kernels PRIVATE -Wall -Wextra -ffp-contract=off)
target_link_libraries(kernels PUBLIC Threads::Threads)

if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$" AND CMAKE_SIZEOF_VOID_P EQUAL 8)
  target_compile_definitions(kernels PRIVATE HEARTH_X86)
  set(avx2_files "${here}/linear_avx2.cpp" "${here}/linear_blocks_avx2.cpp" "${here}/linear_bytes_avx2.cpp"
                 "${here}/quantize_avx2.cpp" "${here}/rows_avx2.cpp"
                 "${here}/attention_avx2.cpp" "${here}/vocab_avx2.cpp" "${here}/gradients_avx2.cpp")
  target_sources(kernels PRIVATE ${avx2_files})
  set_source_files_properties(${avx2_files} PROPERTIES COMPILE_OPTIONS "-mavx2;-mfma;-mf16c")

  set(avx512 -mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512bf16 -mavx512vnni)
  string(JOIN " " avx512_flags ${avx512})
  check_cxx_compiler_flag("${avx512_flags}" HAS_AVX512)
  if(HAS_AVX512)
    target_compile_definitions(kernels PRIVATE HEARTH_HAS_AVX512)
    set(avx512_files "${here}/linear_avx512.cpp" "${here}/linear_blocks_avx512.cpp" "${here}/linear_bytes_avx512.cpp"
                     "${here}/quantize_avx512.cpp" "${here}/rows_avx512.cpp"
                     "${here}/attention_avx512.cpp" "${here}/attention_tiles_avx512.cpp"
                     "${here}/vocab_avx512.cpp" "${here}/gradients_avx512.cpp"
                     "${here}/linear_gradient_avx512.cpp")
    target_sources(kernels PRIVATE ${avx512_files})
    # gcc 12 warns about its own header: an undefined vector is how it writes "no lanes are kept" (bug 105593).
    set_source_files_properties(${avx512_files} PROPERTIES COMPILE_OPTIONS
                                "${avx512};-Wno-uninitialized;-Wno-maybe-uninitialized")
  endif()

  check_cxx_compiler_flag("-mamx-tile -mamx-bf16 -mavx512vbmi" HAS_AMX)
  if(HAS_AVX512 AND HAS_AMX AND CMAKE_SYSTEM_NAME STREQUAL "Linux")
    target_compile_definitions(kernels PRIVATE HEARTH_HAS_AMX)
    set(amx_files "${here}/linear_amx.cpp" "${here}/linear_blocks_amx.cpp" "${here}/attention_amx.cpp"
                  "${here}/gradients_amx.cpp")
    target_sources(kernels PRIVATE ${amx_files})
    set_source_files_properties(${amx_files} PROPERTIES COMPILE_OPTIONS
                                "${avx512};-mavx512vbmi;-mamx-tile;-mamx-bf16;-Wno-uninitialized;-Wno-maybe-uninitialized")
  endif()
endif()
