#pragma once

#include "optim/element_rules.h"
#include "optim/update_work.h"
#include "runtime/device/launch.cuh"

/* An element-wise rule on one element: returns the new weight, *s are the states. */
static __device__ __forceinline__ float step(const update_part &part, float g, float p, float *s)
{
    switch (part.rule) {
    case RULE_ADAMW:
        return adamw_step(part.f, part.decay, g, p, s);
    case RULE_ADAM:
        return adam_step(part.f, part.decay, g, p, s);
    case RULE_ADAM_ATAN2:
        return adam_atan2_step(part.f, part.decay, g, p, s);
    case RULE_ADEMAMIX:
        return ademamix_step(part.f, part.decay, g, p, s);
    case RULE_ADOPT:
        return adopt_step(part.f, part.decay, g, p, s);
    case RULE_LION:
        return lion_step(part.f, part.decay, g, p, s);
    case RULE_MARS:
        return mars_step(part.f, part.decay, g, p, s);
    case RULE_SGD:
        return sgd_step(part.f, part.decay, g, p, s);
    case RULE_SCHEDULE_FREE:
        return schedule_free_step(part.f, part.decay, g, p, s);
    case RULE_ADAMW_APEX:
        return adamw_apex_step(part.f, part.decay, g, p, s);
    case RULE_ADAMW_BNB:
        return adamw_bnb_step(part.f, part.decay, g, p, s);
    case RULE_ADAMW_DEEPSPEED:
        return adamw_deepspeed_step(part.f, part.decay, g, p, s);
    default:
        return adamw_torch_fused_step(part.f, part.decay, g, p, s);
    }
}
