{#- What falls between the edges of one share when `amount` is laid over `whole`: edges are rounded to `digits`, so that
    shares that lie end to end add up exactly. NULL where `amount` is unknown, 0 where there is nothing to lay it over. -#}
{% macro share_between_edges(amount, weight, whole, digits) -%}
    {%- set edge = 'shares.' ~ weight ~ '_edge' -%}
    case
        when {{ amount }} is null then null
        when coalesce({{ whole }}, 0) = 0 then 0
        else
            trunc({{ amount }} * {{ edge }} / {{ whole }}, {{ digits }})
            - trunc({{ amount }} * ({{ edge }} - shares.{{ weight }}_weight) / {{ whole }}, {{ digits }})
    end
{%- endmacro %}

{#- How much of what nobody is named for the other source saw: of tokens, or of requests where there are no tokens. -#}
{% macro seen_part() -%}
    (
        case
            when unattributed.all_tokens > 0
                then shares.token_seen / greatest(shares.token_seen, unattributed.all_tokens)
            else
                coalesce(
                    case when not shares.requests_by_tokens then shares.request_seen end
                    / nullif(greatest(shares.request_seen, unattributed.all_request_count), 0), 0
                )
        end
    )
{%- endmacro %}
