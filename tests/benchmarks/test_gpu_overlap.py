"""The benchmark of collectives on GPUs, on a program that is counted by hand."""

from benchmarks.gpu_overlap import overlap

PROGRAM = """
ENTRY %main (a: f32[4,8]) -> f32[8] {
  %a = f32[4,8]{1,0} parameter(0)
  %s = f32[8,250]{0} all-reduce-start(%a), channel_id=1
  %c = f32[4]{0} custom-call(%a), custom_call_target="__cublas$gemm"
  %e = f32[4]{0} exponential(%c)
  %f = f32[4]{0} custom-call(%a), custom_call_target="__cudnn$fmhaSoftmax"
  ROOT %d = f32[8,250]{0} all-reduce-done(%s)
}
"""


def test_products_between_start_and_end_are_counted():
    assert overlap(PROGRAM) == [{"megabytes": 0.008, "products": 2}]
