/* The integrator's whole job once more in C: what numba's code is held against.
 *
 * Frames in, charge, position and width per visit out, every frame judged, a row of the log each 200 us: the same
 * integers and the same float64 operations in the same order as controller/dose/{integrator,frame_clock,strips,visits,
 * log_row}.py and interlocks/realtime.py, on the same memory. memory.h is generated from the field tables of controller/dose/memory.py,
 * with all constants. Build without fused multiply-add, which would round once where the original rounds twice.
 */
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "memory.h"

typedef const uint8_t *datagram;

static inline int64_t word_i64(datagram d, int index) { int64_t v; memcpy(&v, d + 8 * index, 8); return v; }
static inline uint32_t word_u32(datagram d, int index) { uint32_t v; memcpy(&v, d + 4 * index, 4); return v; }
static inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static inline double larger_f(double a, double b) { return a > b ? a : b; }

/* ---- judgements (interlocks/realtime.py) */

static void latch(memory_t *m, int64_t number, double value, double limit, int64_t t_ns, int64_t now_ns)
{
    state_t *s = &m->state;
    if (s->trip != 0)
        return;
    s->trip = number;
    s->trip_value = value;
    s->trip_limit = limit;
    s->trip_t_ns = t_ns;
    s->trip_local_ns = now_ns;
    s->trip_visit = m->running.visit;
    s->trips += 1;
}

static void judge_liveness(memory_t *m, int64_t now_ns)
{
    const control_t *c = &m->control;
    if (c->drop != 0)
        latch(m, c->drop, 0.0, 0.0, now_ns, now_ns);
    if (c->permit_on == 0)
        return;
    for (int index = 0; index < 2; index++) {
        int64_t lease_ns = index == 0 ? c->lease_ns_0 : c->lease_ns_1;
        if (now_ns - lease_ns > m->limits.lease_grace_ns)
            latch(m, LEASE_EXPIRED, (double)(now_ns - lease_ns) * 1e-6, (double)m->limits.lease_grace_ns * 1e-6, now_ns,
                  now_ns);
    }
    for (int stream = 1; stream < 4; stream++) {
        int64_t silence_ns = now_ns - m->streams[stream].arrival_ns;
        if (m->streams[stream].seen == 0 || silence_ns > m->limits.stale_ns) {
            int64_t number = stream == 1 ? STREAM_SILENT_1 : (stream == 2 ? STREAM_SILENT_2 : STREAM_SILENT_3);
            latch(m, number, (double)silence_ns * 1e-6, (double)m->limits.stale_ns * 1e-6, now_ns, now_ns);
        }
    }
}

static void judge_direction(memory_t *m, int64_t delta, int64_t since_change, int64_t t_ns, int64_t now_ns)
{
    int64_t least = smaller(delta, since_change);
    if ((double)least < -m->limits.spot_dose_counts)
        latch(m, COUNTS_BACKWARDS, (double)least, -m->limits.spot_dose_counts, t_ns, now_ns);
}

static void judge_pedestal(memory_t *m, int64_t counts, int64_t span_ns, int64_t t_ns, int64_t now_ns)
{
    if (span_ns < PEDESTAL_SPAN_NS)
        return;
    double per_s = fabs((double)counts) / (double)span_ns * 1e9;
    if (per_s > m->limits.pedestal_per_s)
        latch(m, PEDESTAL_HIGH, per_s, m->limits.pedestal_per_s, t_ns, now_ns);
}

static void judge_idle(memory_t *m, int stream, int64_t t_ns, int64_t now_ns)
{
    const stream_t *r = &m->streams[stream];
    double limit = stream == 1 ? m->limits.idle_counts_1 : m->limits.idle_counts_2;
    double excess = (double)r->idle_counts - r->base * (double)r->idle_ns;
    if (m->control.permit_on == 1 && fabs(excess) > limit)
        latch(m, IDLE_CHARGE, excess, limit, t_ns, now_ns);
}

static double bounded_pedestal(const memory_t *m, int64_t counts, int64_t span_ns)
{
    double pedestal = span_ns > 0 ? (double)counts / (double)span_ns : 0.0;
    double bound = m->limits.pedestal_per_s * 1e-9;
    double bounded = pedestal > -bound ? pedestal : -bound;
    return bounded < bound ? bounded : bound;
}

static double visit_pedestal(double rate, int64_t span_ns, int64_t quiet_counts, int64_t quiet_ns)
{
    return (double)quiet_counts + rate * (double)(span_ns - quiet_ns);
}

static void judge_frame_1(memory_t *m, int64_t delta, int64_t since_change, int64_t span_ns, int64_t t_ns,
                          int64_t now_ns)
{
    state_t *s = &m->state;
    const visit_t *v = &m->running;
    const limits_t *limits = &m->limits;
    int64_t flags = s->flags_1;
    if ((flags & FLAG_HV_OK) == 0)
        latch(m, HIGH_VOLTAGE_1, 0.0, 0.0, t_ns, now_ns);
    if ((flags & FLAG_SATURATED) != 0)
        latch(m, SATURATED, (double)delta, 0.0, t_ns, now_ns);
    if ((s->flags_3 & FLAG_REQUEST) != 0 && v->visit > 0) {
        s->unasked_ns = -1;
    } else if (((flags | s->flags_2) & FLAG_BEAM) != 0) {
        s->unasked_ns = s->unasked_ns >= 0 ? s->unasked_ns + span_ns : 0;
        if (s->unasked_ns > limits->proof_ns)
            latch(m, BEAM_WITHOUT_REQUEST, (double)s->unasked_ns * 1e-6, (double)limits->proof_ns * 1e-6, t_ns, now_ns);
    } else if (s->unasked_ns > 0) {
        s->unasked_ns = larger(0, s->unasked_ns - (span_ns >> 3));
    }
    judge_direction(m, delta, since_change, t_ns, now_ns);
    double field = (double)(s->counts_1 - s->field_start_1) - m->streams[1].base * (double)(t_ns - s->field_start_1_ns);
    if (m->control.permit_on == 1 && field > limits->field_counts_1)
        latch(m, FIELD_DOSE_PRIMARY, field, limits->field_counts_1, t_ns, now_ns);
    if (v->visit <= 0)
        return;
    const plan_t *plan = &m->plan[v->visit];
    double rate = bounded_pedestal(m, s->quiet_counts_1, s->quiet_ns_1);
    double pedestal = visit_pedestal(rate, t_ns - v->t_start_ns, v->quiet_counts_1, v->quiet_ns_1);
    double counts = (double)(s->counts_1 - v->counts_1) - pedestal;
    double limit = plan->preset + larger_f(plan->preset * limits->spot_dose, limits->spot_dose_counts) + plan->slack_1;
    if (counts > limit)
        latch(m, SPOT_DOSE_PRIMARY, counts, limit, t_ns, now_ns);
    int64_t frames = larger(1, (span_ns + FRAME_NS / 2) / FRAME_NS);
    if ((double)delta > plan->rate_limit * (double)frames) {
        s->over_rate += 1;
        if (s->over_rate >= 2)
            latch(m, RATE_HIGH, (double)delta / (double)frames, plan->rate_limit, t_ns, now_ns);
    } else {
        s->over_rate = 0;
    }
}

static void judge_frame_2(memory_t *m, int64_t delta, int64_t since_change, int64_t t_ns, int64_t now_ns)
{
    state_t *s = &m->state;
    const visit_t *v = &m->running;
    int64_t flags = s->flags_2;
    if ((flags & FLAG_HV_OK) == 0)
        latch(m, HIGH_VOLTAGE_2, 0.0, 0.0, t_ns, now_ns);
    if ((flags & FLAG_SATURATED) != 0)
        latch(m, SATURATED, 0.0, 0.0, t_ns, now_ns);
    if ((flags & FLAG_TRIPPED) != 0)
        latch(m, BACKUP_TRIPPED, 0.0, 0.0, t_ns, now_ns);
    judge_direction(m, delta, since_change, t_ns, now_ns);
    double field = (double)(s->counts_2 - s->field_start_2) - m->streams[2].base * (double)(t_ns - s->field_start_2_ns);
    if (m->control.permit_on == 1 && field > m->limits.field_counts_2)
        latch(m, FIELD_DOSE_SECONDARY, field, m->limits.field_counts_2, t_ns, now_ns);
    if (v->visit > 0 && v->counts_2 >= 0) {
        const plan_t *plan = &m->plan[v->visit];
        double expected = plan->expected_2;
        if (v->ended == 1)
            expected += m->plan[m->measured[s->measured % MEASURED_RING].visit].expected_2;
        double rate = bounded_pedestal(m, s->quiet_counts_2, s->quiet_ns_2);
        double pedestal = visit_pedestal(rate, t_ns - v->t_start_ns, v->quiet_counts_2, v->quiet_ns_2);
        double counts = (double)(s->counts_2 - v->counts_2) - pedestal;
        double limit =
            expected + larger_f(expected * m->limits.spot_dose, m->limits.secondary_counts) + plan->slack_2;
        if (counts > limit)
            latch(m, SPOT_DOSE_SECONDARY, counts, limit, t_ns, now_ns);
    }
}

static void judge_frame_3(memory_t *m, int64_t visit, int64_t t_ns, int64_t now_ns)
{
    state_t *s = &m->state;
    const int32_t *scan = m->scan;
    int64_t flags = s->flags_3;
    if ((flags & FLAG_TRIPPED) != 0)
        latch(m, ENGINE_TRIPPED, (double)scan[11], 0.0, t_ns, now_ns);
    int armed = (flags & FLAG_ARMED) != 0;
    if (m->control.permit_on == 1 && (flags & FLAG_CHAIN) == 0 && (s->flags_3_before & FLAG_CHAIN) != 0)
        latch(m, CHAIN_OPENED, 0.0, 1.0, t_ns, now_ns);
    int moving = (flags & FLAG_MOVING) != 0 || (s->flags_3_before & FLAG_MOVING) != 0;
    int64_t off_x = llabs((int64_t)scan[2] - scan[0]);
    int64_t off_y = llabs((int64_t)scan[3] - scan[1]);
    int64_t spread = larger(llabs((int64_t)scan[4] - scan[2]), llabs((int64_t)scan[5] - scan[3]));
    int64_t off = larger(larger(off_x, off_y), spread);
    if (armed && (flags & FLAG_REQUEST) != 0 && (double)off > m->limits.window_ma) {
        s->off_window += 1;
        if (s->off_window >= (moving ? MOVING_FRAMES : OFF_WINDOW_FRAMES))
            latch(m, MAGNET_READBACK, (double)off * 1e-3, m->limits.window_ma * 1e-3, t_ns, now_ns);
    } else {
        s->off_window = 0;
    }
    if (visit != m->running.visit && t_ns - m->streams[1].t_ns < FRESH_NS) {
        s->visit_apart += 1;
        if (s->visit_apart >= VISIT_APART_FRAMES)
            latch(m, VISIT_SEQUENCE, (double)visit, (double)m->running.visit, t_ns, now_ns);
    } else {
        s->visit_apart = 0;
    }
    if (0 < visit && visit < MAX_VISITS && scan[12] > m->plan[visit].time_limit_us)
        latch(m, SPOT_TIME, (double)scan[12] * 1e-3, (double)m->plan[visit].time_limit_us * 1e-3, t_ns, now_ns);
}

static void judge_sequence(memory_t *m, int64_t visit, int64_t t_ns, int64_t now_ns)
{
    const control_t *c = &m->control;
    if (visit == 0)
        return;
    int64_t following = larger(m->state.begun + 1, c->first_visit);
    if (visit < following || visit > c->last_visit || visit > following + m->running.lost)
        latch(m, VISIT_SEQUENCE, (double)visit, (double)c->last_visit, t_ns, now_ns);
}

static void judge_strips(memory_t *m, int64_t t_ns, int64_t now_ns)
{
    int64_t bad = larger(m->state.bad_x, m->state.bad_y);
    if (bad > m->limits.strips_bad)
        latch(m, STRIPS_BAD, (double)bad, (double)m->limits.strips_bad, t_ns, now_ns);
}

static void judge_width(memory_t *m, double sigma_mm, double expected_mm, int64_t t_ns, int64_t now_ns)
{
    if (expected_mm <= 0.0)
        return;
    double deviation = sigma_mm == sigma_mm ? fabs(sigma_mm / expected_mm - 1.0) : 1.0;
    if (!(deviation <= m->limits.width))
        latch(m, SPOT_WIDTH, deviation, m->limits.width, t_ns, now_ns);
}

static double sum(const double *values, int count)
{
    double total = 0.0;
    for (int i = 0; i < count; i++)
        total += values[i];
    return total;
}

static void begin_part(memory_t *m)
{
    visit_t *v = &m->running;
    v->part_frames = 0;
    v->part_counts = 0;
    v->part_s0_x = v->part_s1_x = v->part_s0_y = v->part_s1_y = 0;
}

static void judge_part(memory_t *m, int rest, int64_t t_ns, int64_t now_ns)
{
    const visit_t *v = &m->running;
    const limits_t *limits = &m->limits;
    const plan_t *plan = &m->plan[v->visit];
    if ((double)v->part_counts < 2.0 * limits->minimum_counts)
        return;
    double doubt = m->state.bad_x + m->state.bad_y > 0 ? 2.0 : 1.0;
    double seen = (double)smaller(v->part_s0_x, v->part_s0_y) / (double)limits->strip_units_per_count;
    double wanted = SEEN_SHARE / doubt * (double)v->part_counts;
    if (seen < wanted) {
        if (!rest)
            latch(m, SPOT_NOT_SEEN, seen, wanted, t_ns, now_ns);
    } else {
        double x_mm = ((double)v->part_s1_x / (double)v->part_s0_x + 0.5) * limits->pitch_x_mm;
        double y_mm = ((double)v->part_s1_y / (double)v->part_s0_y + 0.5) * limits->pitch_y_mm;
        double dx = (x_mm - plan->x_strip_mm) / limits->strip_scale_x;
        double dy = (y_mm - plan->y_strip_mm) / limits->strip_scale_y;
        double error = pow(dx * dx + dy * dy, 0.5);
        if (error > doubt * plan->position_limit_mm)
            latch(m, SPOT_POSITION, error, doubt * plan->position_limit_mm, t_ns, now_ns);
    }
    begin_part(m);
}

static void judge_visit(memory_t *m, const measured_t *row, int64_t t_ns, int64_t now_ns)
{
    state_t *s = &m->state;
    const limits_t *limits = &m->limits;
    const plan_t *plan = &m->plan[row->visit];
    double limit = plan->preset + larger_f(plan->preset * limits->spot_dose, limits->spot_dose_counts);
    if (row->delta_1 > limit)
        latch(m, SPOT_DOSE_PRIMARY, row->delta_1, limit, t_ns, now_ns);
    limit = plan->expected_2 + larger_f(plan->expected_2 * limits->spot_dose, limits->secondary_counts);
    if (row->delta_2 > limit)
        latch(m, SPOT_DOSE_SECONDARY, row->delta_2, limit, t_ns, now_ns);
    double particles = larger_f(s->particles_1, s->particles_2);
    if (particles * plan->per_particle_1 > limits->disagreement_counts) {
        double difference = fabs(s->particles_2 - s->particles_1) / particles;
        if (difference > limits->disagreement)
            latch(m, MONITORS_DISAGREE, difference, limits->disagreement, t_ns, now_ns);
    }
    double seen = (double)smaller(row->strips_x, row->strips_y) / (double)limits->strip_units_per_count;
    if ((double)row->strip_counts >= 2.0 * limits->minimum_counts && seen < SEEN_SHARE * (double)row->strip_counts)
        latch(m, SPOT_NOT_SEEN, seen, SEEN_SHARE * (double)row->strip_counts, t_ns, now_ns);
    judge_strips(m, t_ns, now_ns);
    if (row->x_mm != row->x_mm)
        return;
    limit = limits->bias_share * plan->position_limit_mm;
    if (row->strip_bias_mm > limit)
        latch(m, STRIP_BIAS, row->strip_bias_mm, limit, t_ns, now_ns);
    double dx = row->x_mm - plan->x_strip_mm / limits->strip_scale_x;
    double dy = row->y_mm - plan->y_strip_mm / limits->strip_scale_y;
    double error = pow(dx * dx + dy * dy, 0.5);
    if (error > plan->position_limit_mm)
        latch(m, SPOT_POSITION, error, plan->position_limit_mm, t_ns, now_ns);
    judge_width(m, row->sigma_x_mm, plan->sigma_x_strip_mm / limits->strip_scale_x, t_ns, now_ns);
    judge_width(m, row->sigma_y_mm, plan->sigma_y_strip_mm / limits->strip_scale_y, t_ns, now_ns);
    m->errors_x_mm[s->mean_count % MEAN_VISITS] = dx;
    m->errors_y_mm[s->mean_count % MEAN_VISITS] = dy;
    s->mean_count += 1;
    if (s->mean_count >= MEAN_VISITS) {
        double mean_x = sum(m->errors_x_mm, MEAN_VISITS) / MEAN_VISITS;
        double mean_y = sum(m->errors_y_mm, MEAN_VISITS) / MEAN_VISITS;
        double mean = pow(mean_x * mean_x + mean_y * mean_y, 0.5);
        if (mean > limits->position_mean_mm)
            latch(m, POSITION_MEAN, mean, limits->position_mean_mm, t_ns, now_ns);
    }
}

/* ---- integration (controller/dose/integrator.py) */

static void follow_clock(memory_t *m, stream_t *r, int64_t t_ns, int64_t now_ns)
{
    if (r->settled == 0) {
        if (r->offset_ns < r->settle_offset_ns - SETTLE_FALL_NS) {
            r->settle_offset_ns = r->offset_ns;
            r->settle_ns = now_ns;
        } else if (now_ns - r->settle_ns >= SETTLE_NS) {
            r->settled = 1;
            r->anchor_ns = r->offset_ns;
        }
    } else if (llabs(r->offset_ns - r->anchor_ns) > m->limits.clock_drift_ns) {
        latch(m, CLOCK_DRIFT, (double)(r->offset_ns - r->anchor_ns) * 1e-6, (double)m->limits.clock_drift_ns * 1e-6,
              t_ns, now_ns);
    }
}

static void anchor_clocks(memory_t *m)
{
    for (int stream = 1; stream < 4; stream++)
        m->streams[stream].anchor_ns = m->streams[stream].offset_ns;
}

static int accept(memory_t *m, int64_t stream, uint64_t nonce, int64_t sequence, int64_t t_ns, int64_t now_ns)
{
    stream_t *r = &m->streams[stream];
    if (r->seen == 0 || nonce != r->nonce) {
        if (r->seen == 1)
            latch(m, DEVICE_RESTARTED, (double)stream, 0.0, t_ns, now_ns);
        r->seen = 1;
        r->nonce = nonce;
        r->sequence = sequence - 1;
        r->t_ns = t_ns - 1;
        r->offset_ns = now_ns - t_ns;
        r->settled = 0;
        r->settle_ns = now_ns;
        r->settle_offset_ns = r->offset_ns;
        r->window_start = sequence;
        r->window_lost = 0;
    }
    if (sequence <= r->sequence || t_ns <= r->t_ns) {
        r->repeated += 1;
        return 0;
    }
    int64_t lost = sequence - r->sequence - 1;
    if (sequence - r->window_start >= 10000) {
        r->window_start = sequence;
        r->window_lost = 0;
    }
    if (lost > 0) {
        r->lost += lost;
        r->window_lost += lost;
        m->running.lost += lost;
        if (lost >= m->limits.lost_in_a_row)
            latch(m, FRAME_LOSS_1 + stream - 1, (double)lost, (double)m->limits.lost_in_a_row, t_ns, now_ns);
        else if (r->window_lost > m->limits.lost_per_second)
            latch(m, FRAME_LOSS_1 + stream - 1, (double)r->window_lost, (double)m->limits.lost_per_second, t_ns, now_ns);
    }
    r->sequence = sequence;
    r->t_ns = t_ns;
    r->arrival_ns = now_ns;
    r->offset_ns = smaller(r->offset_ns + OFFSET_CREEP_NS, now_ns - t_ns);
    r->frames += 1;
    follow_clock(m, r, t_ns, now_ns);
    if (now_ns - t_ns - r->offset_ns > m->limits.frame_age_ns)
        r->late += 1;
    return 1;
}

typedef struct { int64_t s0, s1, s2; } sums_t;

typedef struct { int64_t low, high; } window_t;

static window_t window(double expected_mm, double sigma_mm, double pitch_mm)
{
    double centre = expected_mm / pitch_mm + STRIPS / 2;
    double half = larger_f(4.0, WINDOW_SIGMA * sigma_mm / pitch_mm);
    window_t w;
    w.low = smaller(larger((int64_t)(centre - half), 0), STRIPS - 1);
    w.high = smaller(larger((int64_t)(centre + half), 0), STRIPS - 1);
    return w;
}

static sums_t plane_sums(memory_t *m, datagram d, int first, double expected_mm, double sigma_mm, double pitch_mm)
{
    const int32_t *strips = (const int32_t *)(const void *)d + PAYLOAD + first;
    window_t w = window(expected_mm, sigma_mm, pitch_mm);
    sums_t sums = {0, 0, 0};
    const int64_t *pedestals = m->pedestals + first;
    const int64_t *off = m->strip_off + first;
    int64_t *visit = m->strip_sums + first;
    for (int64_t i = w.low; i <= w.high; i++) {
        int64_t exact = ((int64_t)strips[i] * (1 << FRACTION_BITS) - pedestals[i]) & ~off[i];
        int64_t q = (exact + HALF) >> FRACTION_BITS;
        int64_t j = i - STRIPS / 2;
        visit[i] += exact;
        sums.s0 += q;
        sums.s1 += q * j;
        sums.s2 += q * j * j;
    }
    return sums;
}

static void set_off(memory_t *m, int64_t k, int64_t why)
{
    if (m->strip_off[k] == 0) {
        if (k < STRIPS)
            m->state.bad_x += 1;
        else
            m->state.bad_y += 1;
    }
    m->strip_off[k] = -1;
    m->strip_faults[k] |= why;
}

static int good(const memory_t *m, int64_t k)
{
    return m->strip_off[k - 1] == 0 && m->strip_off[k] == 0 && m->strip_off[k + 1] == 0;
}

static int silent(const memory_t *m, int64_t left, int64_t right)
{
    int64_t least = smaller(m->strip_sums[left], m->strip_sums[right]);
    for (int64_t i = left + 1; i < right; i++)
        if (DEAD_SHARE * m->strip_sums[i] >= least)
            return 0;
    return 1;
}

static int find_bad(memory_t *m, int first, window_t w, double fill)
{
    const int64_t *sums = m->strip_sums;
    int64_t clear = larger(m->limits.clear_units, NOISE_UNITS * m->running.strip_frames);
    int found = 0;
    const int64_t *off = m->strip_off;
    int64_t last = first + w.high;
    for (int64_t left = first + w.low; left < last; left++) {
        if (off[left] != 0 || sums[left] < clear)
            continue;
        for (int64_t run = 1; run <= DEAD_RUN; run++) {
            int64_t right = left + run + 1;
            if (right > last || off[right - 1] != 0 || DEAD_SHARE * sums[right - 1] >= sums[left])
                break;
            if (off[right] == 0 && sums[right] >= clear && silent(m, left, right)) {
                for (int64_t i = left + 1; i < right; i++)
                    set_off(m, i, STRIP_DEAD);
                found += (int)run;
                break;
            }
        }
    }
    for (int64_t k = first + w.low + 1; k < first + w.high; k++)
        if (good(m, k)) {
            double most = (double)larger(larger(sums[k - 1], sums[k + 1]), 0);
            if (sums[k] >= clear && (double)sums[k] > HOT_FACTOR * larger_f(fill, 1.0) * most) {
                set_off(m, k, STRIP_HOT);
                found += 1;
            }
        }
    return found;
}

typedef struct { int64_t charge; double doubt; } filled_t;

static filled_t fill_strip(const memory_t *m, int64_t k, int first, window_t w, double fill)
{
    int64_t left = k - 1, right = k + 1;
    while (left >= first + w.low && m->strip_off[left] != 0)
        left -= 1;
    while (right <= first + w.high && m->strip_off[right] != 0)
        right += 1;
    int has_left = left >= first + w.low, has_right = right <= first + w.high;
    double a = has_left ? (double)larger(m->strip_sums[left], 0) : 0.0;
    double b = has_right ? (double)larger(m->strip_sums[right], 0) : 0.0;
    int64_t missing = right - left - 1;
    filled_t filled = {0, 0.0};
    if (missing == 1 && has_left && has_right) {
        double charge = sqrt(a * b) * fill;
        filled.charge = (int64_t)charge;
        filled.doubt = FILL_UNCERTAINTY * charge;
        return filled;
    }
    double most = larger_f(a, b);
    if (most > 0.0)
        for (int64_t n = 0; n < (missing + 1) * (missing + 1) / 4; n++)
            most *= fill;
    filled.doubt = most;
    return filled;
}

typedef struct { sums_t sums; double bias_mm; int64_t quality; } plane_t;

static plane_t close_plane(memory_t *m, int first, double expected_mm, double sigma_mm, double pitch_mm, double fill)
{
    window_t w = window(expected_mm, sigma_mm, pitch_mm);
    for (int64_t i = first + w.low; i <= first + w.high; i++)
        m->strip_sums[i] = (m->strip_sums[i] + HALF) >> FRACTION_BITS;
    plane_t p = {{0, 0, 0}, 0.0, find_bad(m, first, w, fill) > 0 ? QUALITY_STRIP_FOUND : 0};
    int bad = 0;
    for (int64_t i = w.low; i <= w.high; i++) {
        int64_t q = m->strip_sums[first + i];
        if (m->strip_off[first + i] != 0) {
            bad += 1;
            q = fill_strip(m, first + i, first, w, fill).charge;
        }
        int64_t j = i - STRIPS / 2;
        p.sums.s0 += q;
        p.sums.s1 += q * j;
        p.sums.s2 += q * j * j;
    }
    if (bad > 0) {
        p.quality |= QUALITY_STRIP_BAD;
        if (p.sums.s0 > 0) {
            double mean = (double)p.sums.s1 / (double)p.sums.s0;
            for (int64_t i = w.low; i <= w.high; i++)
                if (m->strip_off[first + i] != 0) {
                    double doubt = fill_strip(m, first + i, first, w, fill).doubt;
                    p.bias_mm += doubt * fabs((double)(i - STRIPS / 2) - mean) / (double)p.sums.s0 * pitch_mm;
                }
        }
    }
    return p;
}

static void known_strips(memory_t *m)
{
    const limits_t *limits = &m->limits;
    for (int i = 0; i < STRIPS; i++) {
        uint64_t word_x = i < 64 ? limits->known_x_0 : limits->known_x_1;
        uint64_t word_y = i < 64 ? limits->known_y_0 : limits->known_y_1;
        if ((word_x >> (i % 64) & 1) != 0)
            set_off(m, i, STRIP_KNOWN);
        if ((word_y >> (i % 64) & 1) != 0)
            set_off(m, STRIPS + i, STRIP_KNOWN);
    }
}

static inline double centroid_mm(int64_t s0, int64_t s1, double pitch_mm)
{
    return ((double)s1 / (double)s0 + 0.5) * pitch_mm;
}

static inline double width_mm(int64_t s0, int64_t s1, int64_t s2, double pitch_mm)
{
    double mean = (double)s1 / (double)s0;
    double variance = (double)s2 / (double)s0 - mean * mean - 1.0 / 12.0;
    return variance > 0.0 ? sqrt(variance) * pitch_mm : NAN;
}

static void end_visit(memory_t *m, int64_t t_ns, int64_t counts, int beam_goes_on, int64_t now_ns)
{
    state_t *s = &m->state;
    visit_t *v = &m->running;
    const limits_t *limits = &m->limits;
    const plan_t *plan = &m->plan[v->visit];
    if (v->part_frames < v->strip_frames)
        judge_part(m, 1, t_ns, now_ns);
    measured_t *row = &m->measured[s->measured % MEASURED_RING];
    row->visit = v->visit;
    row->t_start_ns = v->t_start_ns;
    row->t_end_ns = t_ns;
    row->start_1 = v->counts_1;
    row->start_2 = v->counts_2;
    row->counts_1 = counts;
    double rate_1 = (double)(s->delta_0 + s->delta_1 + s->delta_2) / (3.0 * FRAME_NS);
    double rate_2 = (double)(s->delta2_0 + s->delta2_1 + s->delta2_2) / (3.0 * FRAME_NS);
    double late_1 = beam_goes_on ? rate_1 * limits->lag_1_ns : 0.0;
    double late_2 = beam_goes_on ? rate_2 * limits->lag_2_ns : 0.0;
    int64_t span_ns = t_ns - v->t_start_ns;
    double pedestal_1 = s->quiet_ns_1 > 0 ? (double)s->quiet_counts_1 / (double)s->quiet_ns_1 : 0.0;
    double pedestal_2 = s->quiet_ns_2 > 0 ? (double)s->quiet_counts_2 / (double)s->quiet_ns_2 : 0.0;
    row->late_1 = late_1 - v->late_1;
    row->pedestal_1 = visit_pedestal(pedestal_1, span_ns, v->quiet_counts_1, v->quiet_ns_1);
    row->pedestal_2 = visit_pedestal(pedestal_2, span_ns, v->quiet_counts_2, v->quiet_ns_2);
    row->delta_1 = (double)(counts - v->counts_1) - row->pedestal_1 + row->late_1;
    row->late_2 = late_2 - v->late_2;
    row->counts_2 = -1;
    row->delta_2 = NAN;
    row->quality = 0;
    if (v->saturated == 1)
        row->quality |= QUALITY_SATURATED;
    if (v->lost > 0)
        row->quality |= QUALITY_FRAMES_LOST;
    plane_t x = close_plane(m, 0, plan->x_strip_mm, plan->sigma_x_strip_mm, limits->pitch_x_mm, plan->fill_x);
    v->s0_x = x.sums.s0;
    v->s1_x = x.sums.s1;
    v->s2_x = x.sums.s2;
    v->bias_x_mm = x.bias_mm;
    plane_t y = close_plane(m, STRIPS, plan->y_strip_mm, plan->sigma_y_strip_mm, limits->pitch_y_mm, plan->fill_y);
    v->s0_y = y.sums.s0;
    v->s1_y = y.sums.s1;
    v->s2_y = y.sums.s2;
    v->bias_y_mm = y.bias_mm;
    row->quality |= x.quality | y.quality;
    row->strip_counts = v->strip_counts;
    row->strips_x = v->s0_x;
    row->strips_y = v->s0_y;
    double minimum = larger_f(1.0, limits->minimum_counts * (double)limits->strip_units_per_count);
    row->x_mm = row->y_mm = row->sigma_x_mm = row->sigma_y_mm = NAN;
    row->strip_bias_mm = NAN;
    if ((double)v->s0_x >= minimum && (double)v->s0_y >= minimum) {
        row->x_mm = centroid_mm(v->s0_x, v->s1_x, limits->pitch_x_mm) / limits->strip_scale_x;
        row->y_mm = centroid_mm(v->s0_y, v->s1_y, limits->pitch_y_mm) / limits->strip_scale_y;
        row->sigma_x_mm = width_mm(v->s0_x, v->s1_x, v->s2_x, limits->pitch_x_mm) / limits->strip_scale_x;
        row->sigma_y_mm = width_mm(v->s0_y, v->s1_y, v->s2_y, limits->pitch_y_mm) / limits->strip_scale_y;
        double bias_x = v->bias_x_mm / limits->strip_scale_x;
        double bias_y = v->bias_y_mm / limits->strip_scale_y;
        row->strip_bias_mm = sqrt(bias_x * bias_x + bias_y * bias_y);
    } else {
        row->quality |= QUALITY_NO_POSITION;
    }
    if (plan->per_particle_1 > 0.0)
        s->particles_1 += row->delta_1 / plan->per_particle_1;
    v->late_1 = late_1;
    v->late_2 = late_2;
    v->ended = 1;
}

static void publish_visit(memory_t *m, int64_t counts_2, int64_t now_ns)
{
    state_t *s = &m->state;
    visit_t *v = &m->running;
    measured_t *row = &m->measured[s->measured % MEASURED_RING];
    const plan_t *plan = &m->plan[row->visit];
    if (counts_2 >= 0 && v->counts_2 >= 0) {
        row->counts_2 = counts_2;
        row->delta_2 = (double)(counts_2 - v->counts_2) - row->pedestal_2 + row->late_2;
        if (plan->per_particle_2 > 0.0)
            s->particles_2 += row->delta_2 / plan->per_particle_2;
    } else {
        row->pedestal_2 = 0.0;
        row->quality |= QUALITY_FRAMES_LOST;
    }
    judge_visit(m, row, row->t_end_ns, now_ns);
    v->ended = 0;
    v->counts_2 = counts_2;
    s->visits += 1;
    s->measured += 1;
}

static void begin_visit(memory_t *m, int64_t visit, int64_t t_ns, int64_t counts)
{
    visit_t *v = &m->running;
    v->visit = visit;
    m->state.begun = larger(m->state.begun, visit);
    v->t_start_ns = t_ns;
    v->counts_1 = counts;
    memset(m->strip_sums, 0, sizeof m->strip_sums);
    v->strip_frames = 0;
    v->strip_counts = 0;
    begin_part(m);
    v->quiet_ns_1 = v->quiet_counts_1 = 0;
    v->quiet_ns_2 = v->quiet_counts_2 = 0;
    v->lost = 0;
    v->saturated = 0;
}

static int64_t learn_pedestals(memory_t *m, datagram d)
{
    int64_t most = 0;
    const int32_t *words = (const int32_t *)(const void *)d + PAYLOAD;
    int shift = m->state.pedestal_frames < FIRST_FRAMES ? FIRST_SHIFT : PEDESTAL_SHIFT;
    m->state.pedestal_frames += 1;
    for (int i = 0; i < 2 * STRIPS; i++) {
        m->pedestals[i] += ((int64_t)words[i] * (1 << FRACTION_BITS) - m->pedestals[i]) >> shift;
        most = larger(most, llabs(m->pedestals[i]));
    }
    return most;
}

static void find_hot(memory_t *m, int64_t t_ns, int64_t now_ns)
{
    for (int i = 0; i < 2 * STRIPS; i++)
        if (llabs(m->pedestals[i]) > m->limits.hot_pedestal && m->strip_off[i] == 0)
            set_off(m, i, STRIP_HOT);
    judge_strips(m, t_ns, now_ns);
}

static void integrate_idle(memory_t *m, int stream, int idle, int64_t delta, int64_t t_ns, int64_t now_ns)
{
    stream_t *r = &m->streams[stream];
    if (!idle) {
        r->idle_frames = 0;
        r->idle_new = 0;
        return;
    }
    r->idle_frames += 1;
    r->idle_new += delta;
    if (r->idle_frames % IDLE_BLOCK == 0) {
        if (r->idle_frames > IDLE_BLOCK) {
            r->idle_ns += IDLE_BLOCK * FRAME_NS;
            r->idle_counts += r->idle_held;
            judge_idle(m, stream, t_ns, now_ns);
        }
        r->idle_held = r->idle_new;
        r->idle_new = 0;
    }
}

static void integrate_1(memory_t *m, datagram d, int64_t now_ns)
{
    state_t *s = &m->state;
    visit_t *v = &m->running;
    const limits_t *limits = &m->limits;
    int64_t t_ns = word_i64(d, 3);
    int64_t visit = word_u32(d, 8);
    s->flags_1 = word_u32(d, 9);
    int64_t counts = word_i64(d, 5);
    int first = s->frames_seen_1 == 0;
    s->frames_seen_1 = 1;
    int64_t delta = first ? 0 : counts - s->counts_1;
    int64_t span_ns = first ? 0 : larger(0, t_ns - s->frame_1_ns);
    s->frame_1_ns = t_ns;
    s->counts_1 = counts;
    if (s->field_start_1 < 0) {
        s->field_start_1 = counts;
        s->field_start_1_ns = t_ns;
    }
    s->delta_0 = s->delta_1;
    s->delta_1 = s->delta_2;
    s->delta_2 = delta;
    int beam = (s->flags_1 & FLAG_BEAM) != 0;
    int requested = (s->flags_3 & FLAG_REQUEST) != 0;
    int idle = !requested && t_ns - s->request_off_ns > QUIET_NS;
    integrate_idle(m, 1, idle && !first, delta, t_ns, now_ns);
    if (idle && !beam && !first) {
        s->quiet_ns_1 += FRAME_NS;
        s->quiet_counts_1 += delta;
        v->quiet_ns_1 += FRAME_NS;
        v->quiet_counts_1 += delta;
        if (s->quiet_ns_1 >= QUIET_KEPT_NS) {
            s->quiet_ns_1 >>= 1;
            s->quiet_counts_1 >>= 1;
        }
        judge_pedestal(m, s->quiet_counts_1, s->quiet_ns_1, t_ns, now_ns);
        if (m->streams[1].sequence % 8 == 0)
            if (learn_pedestals(m, d) > limits->hot_pedestal)
                find_hot(m, t_ns, now_ns);
    }
    if (visit != v->visit) {
        judge_sequence(m, visit, t_ns, now_ns);
        if (v->ended == 1)
            publish_visit(m, -1, now_ns);
        if (v->visit > 0) {
            end_visit(m, word_i64(d, 7), word_i64(d, 6), visit > 0 && beam && requested, now_ns);
        } else {
            v->late_1 = 0.0;
            v->late_2 = 0.0;
            v->counts_2 = -1;
        }
        if (visit >= MAX_VISITS || visit < 0)
            visit = 0;
        begin_visit(m, visit, word_i64(d, 7), word_i64(d, 6));
    } else if (v->visit > 0 && beam && t_ns - FRAME_NS >= v->t_start_ns + limits->blind_ns) {
        const plan_t *plan = &m->plan[v->visit];
        sums_t sums = plane_sums(m, d, 0, plan->x_strip_mm, plan->sigma_x_strip_mm, limits->pitch_x_mm);
        s->row_s0_x += sums.s0;
        s->row_s1_x += sums.s1;
        s->row_s2_x += sums.s2;
        v->part_s0_x += sums.s0;
        v->part_s1_x += sums.s1;
        sums = plane_sums(m, d, STRIPS, plan->y_strip_mm, plan->sigma_y_strip_mm, limits->pitch_y_mm);
        s->row_s0_y += sums.s0;
        s->row_s1_y += sums.s1;
        s->row_s2_y += sums.s2;
        v->part_s0_y += sums.s0;
        v->part_s1_y += sums.s1;
        v->strip_frames += 1;
        v->strip_counts += delta;
        v->part_frames += 1;
        v->part_counts += delta;
        if (v->part_frames >= PART_FRAMES)
            judge_part(m, 0, t_ns, now_ns);
    }
    if ((s->flags_1 & FLAG_SATURATED) != 0)
        v->saturated = 1;
    s->row_flags |= s->flags_1;
    s->row_frames_1 += 1;
    judge_frame_1(m, delta, counts - word_i64(d, 6), span_ns, t_ns, now_ns);
}

static void integrate_2(memory_t *m, datagram d, int64_t now_ns)
{
    state_t *s = &m->state;
    visit_t *v = &m->running;
    int64_t t_ns = word_i64(d, 3);
    s->flags_2 = word_u32(d, 9);
    int64_t counts = word_i64(d, 5);
    int first = s->frames_seen_2 == 0;
    s->frames_seen_2 = 1;
    int64_t delta = first ? 0 : counts - s->counts_2;
    s->counts_2 = counts;
    if (s->field_start_2 < 0) {
        s->field_start_2 = counts;
        s->field_start_2_ns = t_ns;
    }
    s->delta2_0 = s->delta2_1;
    s->delta2_1 = s->delta2_2;
    s->delta2_2 = delta;
    int idle = (s->flags_3 & FLAG_REQUEST) == 0 && t_ns - s->request_off_ns > QUIET_NS;
    integrate_idle(m, 2, idle && !first, delta, t_ns, now_ns);
    if (idle && (s->flags_2 & FLAG_BEAM) == 0 && !first) {
        s->quiet_ns_2 += FRAME_NS;
        s->quiet_counts_2 += delta;
        v->quiet_ns_2 += FRAME_NS;
        v->quiet_counts_2 += delta;
        if (s->quiet_ns_2 >= QUIET_KEPT_NS) {
            s->quiet_ns_2 >>= 1;
            s->quiet_counts_2 >>= 1;
        }
        judge_pedestal(m, s->quiet_counts_2, s->quiet_ns_2, t_ns, now_ns);
    }
    if (word_i64(d, 7) == v->t_start_ns && (int64_t)word_u32(d, 8) == v->visit) {
        if (v->ended == 1)
            publish_visit(m, word_i64(d, 6), now_ns);
        else if (v->counts_2 < 0)
            v->counts_2 = word_i64(d, 6);
    }
    if ((s->flags_2 & FLAG_SATURATED) != 0)
        v->saturated = 1;
    s->row_flags |= s->flags_2;
    s->row_frames_2 += 1;
    judge_frame_2(m, delta, counts - word_i64(d, 6), t_ns, now_ns);
}

static inline int32_t micrometres(double value_mm)
{
    return value_mm != value_mm ? NO_VALUE : (int32_t)nearbyint(value_mm * 1000.0);
}

static void write_row(memory_t *m, int64_t t_ns)
{
    state_t *s = &m->state;
    const limits_t *limits = &m->limits;
    rows_t *row = &m->rows[s->rows % ROW_RING];
    row->t_ns = t_ns;
    row->counts_1 = (uint64_t)s->counts_1;
    row->counts_2 = (uint64_t)s->counts_2;
    row->visit = (uint32_t)m->running.visit;
    row->flags = (uint32_t)s->row_flags;
    row->strip_counts = (int32_t)(s->row_s0_x + s->row_s0_y);
    double x = NAN, y = NAN, wx = NAN, wy = NAN;
    if (s->row_s0_x > 64 && s->row_s0_y > 64) {
        x = centroid_mm(s->row_s0_x, s->row_s1_x, limits->pitch_x_mm);
        y = centroid_mm(s->row_s0_y, s->row_s1_y, limits->pitch_y_mm);
        wx = width_mm(s->row_s0_x, s->row_s1_x, s->row_s2_x, limits->pitch_x_mm);
        wy = width_mm(s->row_s0_y, s->row_s1_y, s->row_s2_y, limits->pitch_y_mm);
    }
    row->x_strip_um = micrometres(x);
    row->y_strip_um = micrometres(y);
    row->sigma_x_strip_um = micrometres(wx);
    row->sigma_y_strip_um = micrometres(wy);
    row->x_set_ma = m->scan[0];
    row->y_set_ma = m->scan[1];
    row->x_primary_ma = m->scan[2];
    row->y_primary_ma = m->scan[3];
    row->x_redundant_ma = m->scan[4];
    row->y_redundant_ma = m->scan[5];
    row->x_voltage_mv = m->scan[6];
    row->y_voltage_mv = m->scan[7];
    row->x_field_utm = m->scan[8];
    row->y_field_utm = m->scan[9];
    row->frames_1 = (uint8_t)s->row_frames_1;
    row->frames_2 = (uint8_t)s->row_frames_2;
    row->permit = s->row_permits > 0 ? 1 : 0;
    row->trip = (uint8_t)s->trip;
    s->rows += 1;
}

static void integrate_3(memory_t *m, datagram d, int64_t now_ns)
{
    state_t *s = &m->state;
    int64_t t_ns = word_i64(d, 3);
    memcpy(m->scan, d + 4 * PAYLOAD, sizeof m->scan);
    s->flags_3_before = s->flags_3;
    s->flags_3 = word_u32(d, 9);
    if ((s->flags_3_before & FLAG_REQUEST) != 0 && (s->flags_3 & FLAG_REQUEST) == 0)
        s->request_off_ns = t_ns;
    if ((s->flags_3 & FLAG_REQUEST) != 0 && m->running.visit > 0)
        s->unasked_ns = -1;
    s->row_flags |= s->flags_3;
    judge_frame_3(m, word_u32(d, 8), t_ns, now_ns);
    if (m->control.log_on == 1)
        write_row(m, t_ns);
    s->row_flags = 0;
    s->row_frames_1 = 0;
    s->row_frames_2 = 0;
    s->row_permits = 0;
    s->row_s0_x = s->row_s1_x = s->row_s2_x = 0;
    s->row_s0_y = s->row_s1_y = s->row_s2_y = 0;
}

static void start_field(memory_t *m)
{
    state_t *s = &m->state;
    if (m->running.ended == 1) {
        m->measured[s->measured % MEASURED_RING].quality |= QUALITY_FRAMES_LOST;
        s->measured += 1;
        m->running.ended = 0;
    }
    s->field_start_1 = s->frames_seen_1 == 1 ? s->counts_1 : -1;
    s->field_start_2 = s->frames_seen_2 == 1 ? s->counts_2 : -1;
    s->field_start_1_ns = m->streams[1].t_ns;
    s->field_start_2_ns = m->streams[2].t_ns;
    m->streams[1].base = bounded_pedestal(m, s->quiet_counts_1, s->quiet_ns_1);
    m->streams[2].base = bounded_pedestal(m, s->quiet_counts_2, s->quiet_ns_2);
    for (int stream = 1; stream < 3; stream++) {
        m->streams[stream].idle_ns = 0;
        m->streams[stream].idle_counts = 0;
        m->streams[stream].idle_frames = 0;
        m->streams[stream].idle_new = 0;
    }
    s->begun = 0;
    s->particles_1 = 0.0;
    s->particles_2 = 0.0;
    s->visits = 0;
    s->mean_count = 0;
    m->running.visit = 0;
    known_strips(m);
    anchor_clocks(m);
    s->clear_seen = m->control.clear;
}

static void clear_latch(memory_t *m)
{
    state_t *s = &m->state;
    if (s->trip == CLOCK_DRIFT)
        anchor_clocks(m);
    s->trip = 0;
    s->trip_value = 0.0;
    s->trip_limit = 0.0;
    s->over_rate = 0;
    s->off_window = 0;
    s->visit_apart = 0;
    s->unasked_ns = -1;
    for (int stream = 1; stream < 4; stream++)
        m->streams[stream].window_lost = 0;
    s->reset_seen = m->control.reset;
}

static int is_fresh(const memory_t *m, int64_t now_ns)
{
    const stream_t *r = m->streams;
    if (r[1].settled + r[2].settled + r[3].settled < 3)
        return 0;
    int64_t oldest = larger(now_ns - r[1].t_ns - r[1].offset_ns,
                            larger(now_ns - r[2].t_ns - r[2].offset_ns - FRAME_NS,
                                   now_ns - r[3].t_ns - r[3].offset_ns - ROW_NS));
    return oldest <= m->limits.frame_age_ns;
}

static int64_t decide(const memory_t *m, int fresh, int64_t now_ns)
{
    const state_t *s = &m->state;
    if (s->trip != 0)
        return s->drops_for != s->trips ? ACTION_DROP : ACTION_NONE;
    if (fresh && m->control.permit_on == 1 && now_ns <= m->control.lease_ns_0 && now_ns <= m->control.lease_ns_1)
        return ACTION_PERMIT;
    return ACTION_NONE;
}

static int64_t handle_frame(memory_t *m, datagram d, int64_t now_ns)
{
    if (m->control.clear != m->state.clear_seen)
        start_field(m);
    if (m->control.reset != m->state.reset_seen)
        clear_latch(m);
    int fresh = 0;
    int64_t stream = d[5];
    int64_t t_ns = word_i64(d, 3);
    if (accept(m, stream, (uint64_t)word_i64(d, 1), word_i64(d, 2), t_ns, now_ns)) {
        if (stream == 1) {
            integrate_1(m, d, now_ns);
            fresh = is_fresh(m, now_ns);
        } else if (stream == 2) {
            integrate_2(m, d, now_ns);
        } else if (stream == 3) {
            integrate_3(m, d, now_ns);
        }
    }
    judge_liveness(m, now_ns);
    return decide(m, fresh, now_ns);
}

/* The size that the generated layout has here: Python compares it with its own. */
size_t memory_bytes(void) { return sizeof(memory_t); }

/* Judge `count` datagrams, one each `stride` bytes; returns the sum of the actions decided. */
int64_t run(memory_t *m, const uint8_t *data, int64_t stride, int64_t count, const int64_t *times_ns)
{
    int64_t actions = 0;
    for (int64_t k = 0; k < count; k++)
        actions += handle_frame(m, data + k * stride, times_ns[k]);
    return actions;
}
