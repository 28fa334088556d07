-- Correction 7: who is behind each row of the rollup, so that a metric can count each user once over any period and dimension.
select
    daily.date,
    {% for column in metric_dimensions() -%}
    daily.{{ column }},
    {% endfor -%}
    named.user_id
from {{ ref('daily_usage_rollup') }} as daily
left join lateral unnest(daily.user_ids) as named (user_id) on true
